"""Before a run: the time, the machines, the dollars, the memory and the disk that its stages will take."""
