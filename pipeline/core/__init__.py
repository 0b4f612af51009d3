"""What every stage shares: configuration, errors, storage, artifacts, schemas, and how Beam and Ray Data are run."""
