"""The vectors of a frozen encoder -> classifiers on them, and their scores."""
