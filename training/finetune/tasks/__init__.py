"""Fine-tuning tasks, a file for each family."""
