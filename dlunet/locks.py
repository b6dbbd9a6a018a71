"""Locks on files, by which processes keep out of each other's way; they end with the process, whatever ends it."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


class FileLock:
    """A lock that one process holds alone, or several hold together.

    Where there can be none, as in a folder that is only to be read or on a disk that has no locks, nobody is kept out.

    Args:
        path: The lock file; made if missing, as is its folder.
    """

    def __init__(self, path: Path) -> None:
        self._file = _open(path)

    def take(self, alone: bool = True, wait: bool = False) -> bool:
        """Take the lock, or change from one way of holding it to the other.

        Args:
            alone: Whether no other process may hold it as well.
            wait: Whether to wait for those that keep it from this process.

        Returns:
            Whether this process may go on.
        """
        if self._file is None:
            return True
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError as error:
            logger.warning(
                "warning: this disk has no file locks (%s): let one run at a time write here", error.strerror
            )
        return True

    def release(self) -> None:
        """Let others go on."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _open(path: Path) -> int | None:
    if fcntl is None:
        return None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(OSError):  # another user's
        return os.open(path, os.O_RDONLY)
    return None  # who has to write here will be told why that cannot be
