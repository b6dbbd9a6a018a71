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
        remove: Whether the file is removed when the lock is released, which is held alone then.
    """

    def __init__(self, path: Path, remove: bool = False) -> None:
        self._path = path
        self._remove = remove
        self._file = _open(path)

    def take(self, alone: bool = True, wait: bool = False) -> bool:
        """Take the lock, or change from one way of holding it to the other.

        Args:
            alone: Whether no other process may hold it as well.
            wait: Whether to wait for those that keep it from this process.

        Returns:
            Whether this process may go on.
        """
        while self._file is not None:
            try:
                fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            except OSError as error:
                logger.warning(
                    "warning: file locks are not available (%s): let only one run at a time write", error.strerror
                )
                return True
            if not self._remove or _is_open(self._path, self._file):
                return True
            os.close(self._file)  # a file that another process has removed meanwhile
            self._file = _open(self._path)
        return True

    def release(self) -> None:
        """Let others go on."""
        if self._file is not None:
            if self._remove and _is_open(self._path, self._file):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _is_open(path: Path, file: int) -> bool:
    """Whether an open file is the one that lies at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except OSError:
        return False


def _open(path: Path) -> int | None:
    if fcntl is None:
        return None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(OSError):  # another user's
        return os.open(path, os.O_RDONLY)
    return None  # who has to write here will be told why that cannot be
