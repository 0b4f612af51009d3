"""Token shards -> masked-LM and next-sentence examples (Ray Data)."""
