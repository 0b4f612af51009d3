"""The encoder that a task starts from: Cloze's own, or one that transformers runs."""
