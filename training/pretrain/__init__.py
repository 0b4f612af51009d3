"""Examples -> a pretrained checkpoint (Ray Train and DeepSpeed)."""
