"""The weekly schedule as a minute cron, with kills: see __main__.py."""
