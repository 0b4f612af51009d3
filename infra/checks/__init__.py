"""Checks of a finished stage, against the last run that passed and the promoted models, that stop a run."""
