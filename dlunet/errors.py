"""The error that a user can act on."""

from __future__ import annotations

from pathlib import Path


class UserError(Exception):
    """Something the user gave cannot be used.

    The message names the file or setting, what was found, what was expected, and what to do. The command line prints
    it without a traceback and exits with code 1.
    """


class WriteError(UserError):
    """A result could not be written: no fault of the case at hand, and a reason to stop."""

    @classmethod
    def of(cls, path: Path, reason: OSError | str) -> WriteError:
        """The error for a file or folder, and why it could not be written."""
        if isinstance(reason, OSError):
            reason = reason.strerror or str(reason)
        return cls(f"{path}: could not be written ({reason}); check permissions and free space")


class NotReadable(Exception):
    """What is wrong with a file, as the part of a message that follows the file's name."""
