"""The roof: when and where a run runs, and what it shows of itself."""
