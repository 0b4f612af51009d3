"""Sources -> document shards (Beam)."""
