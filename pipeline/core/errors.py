"""The errors that a user can act on."""


class UserError(ValueError):
    """A user's mistake: one line with the file, the value and the fix. The CLI prints it and exits with status 2."""


class MissingFile(UserError):
    """A file that the configuration names does not exist (yet)."""


class DamagedFile(UserError):
    """A file's content is not what its format or its recorded digest requires. Read it again before believing it."""


class StorageError(OSError):
    """An operation on S3 failed: one line with the key, the operation, the service's code and the fix."""


class TemporaryStorageError(StorageError):
    """A later attempt may succeed."""
