"""File locks between processes; the system releases them when the process ends, however it ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


@contextmanager
def alone(path: Path, waiting: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock while the block runs; the lock file is removed afterwards.

    Args:
        path: The lock file.
        waiting: Logged if another process must be waited for.
    """
    lock = FileLock(path, remove=True)
    try:
        if waiting is None or not lock.take():
            if waiting is not None:
                logger.info(waiting)
            lock.take(wait=True)
        yield
    finally:
        lock.release()


class FileLock:
    """An exclusive or shared lock.

    Where locking is impossible, as in a read-only folder or on a file system without locks, no process is blocked.

    Args:
        path: The lock file; it and its folder are created if missing.
        remove: Whether the file is removed on release; the lock must then be exclusive.
    """

    def __init__(self, path: Path, remove: bool = False) -> None:
        self._path = path
        self._remove = remove
        self._is_held = False
        self._file = _open(path)

    def take(self, alone: bool = True, wait: bool = False) -> bool:
        """Acquire the lock, or switch between exclusive and shared.

        Args:
            alone: Whether the lock is exclusive, not shared.
            wait: Whether to wait for other processes to release it.

        Returns:
            Whether this process may proceed.
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
                self._is_held = True
                return True
            os.close(self._file)  # another process has removed the file in the meantime
            self._file = _open(self._path)
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            # One that was only waited for is another process's.
            if self._remove and self._is_held and _is_open(self._path, self._file):
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file, self._is_held = None, False


def _is_open(path: Path, file: int) -> bool:
    """Whether an open file is the one now at a path."""
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
    with suppress(OSError):  # owned by another user
        return os.open(path, os.O_RDONLY)
    return None  # the writer reports why the folder is not writable
