"""Groups of workers on a Ray cluster: start, restart, size, progress and collective operations."""
