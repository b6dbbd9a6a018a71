"""Share a folder of prepared cases between simultaneous runs.

Runs that need the same cases share them: the first prepares them, while the others wait. A case that others may be
reading is never replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dlunet.errors import UserError
from dlunet.locks import FileLock

logger = logging.getLogger(__name__)

#: Lock files: exclusive for the run that prepares, and shared by all runs that read.
PREPARING, READING = ".preparing", ".reading"


class SharedFolder:
    """A folder of prepared cases that this process may read.

    From :meth:`preparing` on, until :meth:`close`, no other run replaces a case in it.

    Args:
        folder: The folder; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reading: FileLock | None = None
        self._preparing: FileLock | None = None

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """During the block, no other run prepares cases here; afterwards, this run holds the reading lock."""
        self._preparing = own = FileLock(self.folder / PREPARING)
        try:
            if not own.take():
                logger.info("%s: another run is preparing cases; waiting for it", self.folder)
                own.take(wait=True)
            self._reading = self._reading or FileLock(self.folder / READING)
            yield
            self._reading.take(alone=False, wait=True)
        except BaseException:
            self.close()
            raise
        finally:
            own.release()

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
        """From here on, other jobs may prepare cases here at the same time, if they have come to this point as well."""
        assert self._preparing is not None, "called while preparing"
        self._preparing.take(alone=False, wait=True)

    def close(self) -> None:
        """Release the reading lock."""
        if self._reading is not None:
            self._reading.release()
            self._reading = None
