"""Public data -> a local folder or S3: in parts, resumably, checked against the published digests."""
