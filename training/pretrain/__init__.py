"""Pretraining: examples -> checkpoints, with Ray Train and DeepSpeed."""
