"""Signals that ask a command to end: it ends in order, and with an exit code that tells of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from types import FrameType

#: Sent by Ctrl-C, a batch system whose time is up, and a terminal that is closed.
ASKING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)


class Stopped(BaseException):
    """A signal that asks the process to end.

    Attributes:
        number: The signal's number.
        name: Its name.
        exit_code: What a shell reports of a process that the signal ended: 128 and its number.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
        super().__init__(self.name)


@contextmanager
def signals_raise() -> Iterator[None]:
    """While the block runs, signals that ask the process to end raise :class:`Stopped` in the main thread.

    A signal that is ignored, as ``nohup`` has it, stays ignored. Processes that are forked meanwhile end as by default.
    Asked once, the process is left to end in order, and only a second Ctrl-C ends it at once.
    """
    process, report = os.getpid(), sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            for other in chosen:
                signal.signal(other, _end_at_once if other == signal.SIGINT else signal.SIG_IGN)
            raise Stopped(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def ask_again(ignored: sys.UnraisableHookArgs) -> None:
        """Where an exception is ignored, as within a destructor, it is raised once more, a moment later."""
        if isinstance(ignored.exc_value, Stopped):
            for number in chosen:
                signal.signal(number, stop)
            threading.Timer(0.01, os.kill, (process, ignored.exc_value.number)).start()
        else:
            report(ignored)

    chosen = [number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        chosen = []  # only the main thread can choose
    before = {number: signal.signal(number, stop) for number in chosen}
    sys.unraisablehook = ask_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    for process in active_children():
        process.kill()
    os._exit(128 + number)
