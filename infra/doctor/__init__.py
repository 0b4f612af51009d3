"""What a machine, a store or a cluster lacks for Cloze, and how to fix it: `cloze doctor`."""
