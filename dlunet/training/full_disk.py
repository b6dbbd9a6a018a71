"""What a training does where the disk is full: it stops, or goes on with a warning."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dlunet.errors import OUT_OF_PLACE, WriteError

log = logging.getLogger(__name__)


@contextmanager
def or_go_on(on_full: str) -> Iterator[None]:
    """Say so and go on after the block if it cannot write, where ``checkpoint.on_full`` is ``"continue"``.

    Raises:
        WriteError: That of the block, where it is ``"stop"``.
    """
    try:
        yield
    except WriteError as error:
        if on_full == "stop":
            raise
        log.warning("warning: %s; training goes on, as checkpoint.on_full=continue says", error)


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
