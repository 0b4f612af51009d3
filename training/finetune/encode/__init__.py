"""Labelled files -> a task's examples as token ids."""
