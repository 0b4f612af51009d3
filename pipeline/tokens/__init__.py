"""Documents + vocabulary -> token shards (Ray Data)."""
