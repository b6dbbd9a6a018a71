"""What a training does where the disk is full: it stops, or goes on with a warning."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from types import TracebackType

from dlunet.errors import OUT_OF_PLACE, WriteError

log = logging.getLogger(__name__)


class OnFull:
    """A block that writes: whether a training goes on if it cannot. It says so once, until it can again.

    Args:
        choice: ``checkpoint.on_full``: ``"stop"`` raises the :class:`WriteError` of the block, ``"continue"`` does not.

    Attributes:
        is_full: Whether the last block could not write.
    """

    def __init__(self, choice: str) -> None:
        self.goes_on = choice == "continue"
        self.is_full = False

    def __enter__(self) -> OnFull:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if not (self.goes_on and isinstance(error, WriteError)):
            self.is_full = False
            return False
        if not self.is_full:
            log.warning("warning: %s; training goes on, as checkpoint.on_full=continue says", error)
        self.is_full = True
        return True


class LogFile(logging.FileHandler):
    """``train.log``; lines for which there is no room are on the screen only."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback for a line that could not be written."""
        error = sys.exc_info()[1]
        if not (isinstance(error, OSError) and error.errno in OUT_OF_PLACE):
            super().handleError(record)

    def close(self) -> None:
        """Close the file, also if its last lines could not be written."""
        with suppress(OSError):
            super().close()
