"""How many labels a pretrained model saves: learning curves of a task, beside those of baselines."""
