"""A group of workers on a Ray cluster: how it starts, how large it is, and what its workers tell each other."""
