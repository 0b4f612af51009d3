"""The vectors of a frozen encoder -> logistic regressions on them, and their scores."""
