"""Where a run runs: on this machine, or on a Ray cluster as a job."""
