"""Weights on disk: checkpoints of our own, Hugging Face's folders, and what is done with trained weights."""
