"""The errors that a user can act on."""


class UserError(ValueError):
    """A user's mistake: one line with the file, the value and the fix. The CLI prints it and exits with status 2."""


class MissingFile(UserError):
    """A file that the configuration names does not exist (yet)."""
