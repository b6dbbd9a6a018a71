"""Share a folder of prepared cases between simultaneous runs.

Runs that need the same cases share them: the first prepares them, while the others wait. Only shards of one dataset are
prepared at the same time. A case that others may be reading is never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlunet.errors import UserError
from dlunet.locks import FileLock

logger = logging.getLogger(__name__)

#: Lock files, in the order in which they are taken: exclusive for the run that decides what to prepare; exclusive for
#: the run that prepares, or shared by shards; and shared by all runs that read. A run that waits for shards keeps the
#: first one, so that shards which begin later wait for it.
DECIDING, PREPARING, READING = ".deciding", ".preparing", ".reading"


class SharedFolder:
    """A folder of prepared cases that this process may read.

    From :meth:`preparing` on, until :meth:`close`, no other run replaces a case in it.

    Args:
        folder: The folder; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reading: FileLock | None = None
        self._deciding: FileLock | None = None

    @contextmanager
    def preparing(self, alone: bool = True) -> Iterator[None]:
        """During the block, no other run prepares cases here; afterwards, this run holds the reading lock.

        Args:
            alone: Whether this is so for the whole block, not only until :meth:`let_others_prepare`.
        """
        self._deciding, preparing = FileLock(self.folder / DECIDING), FileLock(self.folder / PREPARING)
        try:
            self._wait_for(self._deciding)
            self._wait_for(preparing, alone)
            self._reading = self._reading or FileLock(self.folder / READING)
            yield
            self._reading.take(alone=False, wait=True)
        except BaseException:
            self.close()
            raise
        finally:
            preparing.release()
            self._deciding.release()

    def _wait_for(self, lock: FileLock, alone: bool = True) -> None:
        if not lock.take(alone):
            logger.info("%s: another run is preparing cases; waiting for it", self.folder)
            lock.take(alone, wait=True)

    def replace(self, number: int) -> None:
        """Ensure that no other run reads the cases before some are replaced.

        Args:
            number: Number of cases to be replaced, for the message.

        Raises:
            UserError: Another run reads them.
        """
        assert self._reading is not None, "called while preparing"
        if not self._reading.take():
            raise UserError(
                f"{self.folder}: is in use by another run, and {number} of its cases would have to be prepared again, "
                "because their files or the intensities of the labelled cases changed; wait for that run to end, or "
                "use a separate folder: data.prepared=FOLDER"
            )

    def let_others_prepare(self) -> None:
        """From here on, runs that need not be alone may prepare cases as well, but no longer replace any."""
        assert self._reading is not None and self._deciding is not None, "called while preparing"
        self._reading.take(alone=False, wait=True)
        self._deciding.release()

    def close(self) -> None:
        """Release the reading lock."""
        if self._reading is not None:
            self._reading.release()
            self._reading = None
