"""The errors that a user can act on."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class UserError(ValueError):
    """What a user can mend: one line with the file, the value and the mend. The CLI prints it and exits with 2."""


class MissingFile(UserError):
    """A file that the configuration names is not there (yet)."""
