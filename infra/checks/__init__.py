"""Checks of a finished stage, against the last run that passed and the promoted model, that stop a run."""
