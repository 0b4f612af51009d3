"""Checkpoints and Hugging Face model folders, and what uses trained weights: warm starts and mask prediction."""
