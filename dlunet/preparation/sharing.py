"""One folder of prepared cases, several runs at the same time.

Runs that need the same cases share them: the first prepares them, while the others wait. A case that others may be
reading is never replaced. Both are locks of the operating system, which end with the process that holds them, whatever
ends it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dlunet.errors import UserError

try:
    import fcntl
except ImportError:  # not a Unix system
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

#: The lock files: held alone by the run that prepares, and together by all that read.
PREPARING, READING = ".preparing", ".reading"


class SharedFolder:
    """A folder of prepared cases that this process may read.

    From :meth:`preparing` on, until :meth:`close`, no other run replaces a case in it.

    Args:
        folder: The folder; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reading: int | None = None

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """While the block runs, no other run prepares cases here; afterwards this one reads them."""
        own = _open(self.folder / PREPARING)
        try:
            if not _lock(own, alone=True):
                logger.info("%s: another run prepares its cases; waiting for it", self.folder)
                _lock(own, alone=True, wait=True)
            if self._reading is None:
                self._reading = _open(self.folder / READING)
            yield
            _lock(self._reading, wait=True)
        except BaseException:
            self.close()
            raise
        finally:
            _close(own)

    def replace(self, number: int) -> None:
        """Make sure that no other run reads the cases, before some are replaced.

        Args:
            number: How many cases have to be replaced, for the message.

        Raises:
            UserError: Another run reads them.
        """
        if not _lock(self._reading, alone=True):
            raise UserError(
                f"{self.folder}: is in use by another run, and {number} of its cases would have to be prepared anew, "
                "since their files or the intensities of the labelled cases changed; wait for that run to end, or give "
                "this one a folder of its own: data.prepared=FOLDER"
            )

    def close(self) -> None:
        """Stop reading."""
        _close(self._reading)
        self._reading = None


def _open(path: Path) -> int | None:
    """A lock file; None where there can be none, as in a folder that is only to be read."""
    if fcntl is None:
        return None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(OSError):  # another user's
        return os.open(path, os.O_RDONLY)
    return None  # if cases have to be written, that says why not


def _lock(file: int | None, alone: bool = False, wait: bool = False) -> bool:
    """Lock a file, alone or together with others; False where another process keeps it from that."""
    if file is None:
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("its file system has no locks (%s): let only one run at a time prepare cases", error.strerror)
    return True


def _close(file: int | None) -> None:
    if file is not None:
        os.close(file)
