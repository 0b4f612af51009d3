"""Pretraining and fine-tuning: examples -> checkpoints -> scores, exports and vectors."""
