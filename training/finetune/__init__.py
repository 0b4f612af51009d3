"""Checkpoint + labelled file -> a fine-tuned model and its scores (Ray Train)."""
