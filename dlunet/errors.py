"""Exceptions for errors that the user can fix."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

#: Error numbers of the file system when a result cannot be written.
OUT_OF_PLACE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)


#: Parts of the messages with which PyTorch says that memory is short, on a GPU and on a CPU.
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "can't allocate memory", "_STATUS_ALLOC_FAILED")


class UserError(Exception):
    """Something provided by the user cannot be used.

    The message names the file or setting, what was found, what was expected, and what to do. The command line prints
    it without a traceback and exits with code 1.
    """


class SomeCasesFailed(UserError):
    """Some cases could not be used; raised once all others are finished and written."""


class WriteError(UserError):
    """A result could not be written: not the fault of a single case, and a reason to stop."""

    @classmethod
    def of(cls, path: Path, reason: OSError | str) -> WriteError:
        """The error for a file or folder and the reason why it could not be written."""
        if isinstance(reason, OSError):
            reason = reason.strerror or str(reason)
        return cls(f"{path}: could not be written ({reason}); check permissions and free space")


class NotReadable(Exception):
    """A file cannot be read; the message says why and is meant to follow the file's name."""


def cannot_be_opened(path: object, reason: OSError) -> UserError:
    """The error for a file or folder that is there but cannot be opened or read."""
    return UserError(f"{path}: cannot be opened ({reason.strerror}); check its permissions and its disk")


def few(names: Sequence[object], count: int = 5) -> str:
    """The first names of a list, for a message."""
    return ", ".join(map(str, names[:count])) + (", …" if len(names) > count else "")


def in_one_line(error: BaseException) -> str:
    """The text of an error of another package, without line breaks and not longer than a message can be."""
    return shorten(str(error), 300, placeholder=" …")


def message_for_users(error: Exception) -> str | None:
    """What to say of an error that a user can act on; None for any other."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in OUT_OF_PLACE:
        return f"{error.filename or 'output'}: {error.strerror}; check permissions and free space"
    return None
