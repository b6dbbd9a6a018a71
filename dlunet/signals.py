"""Signals that ask a command to stop: it shuts down cleanly, with the signal's exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children, parent_process
from types import FrameType

#: Sent by Ctrl-C, by a batch system at its time limit, and by a closing terminal.
ASKING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)


class Stopped(SystemExit):
    """A signal asked the process to stop.

    A process that nobody catches it in ends with the signal's exit code and without a traceback.

    Attributes:
        number: The signal's number.
        name: The signal's name.
        exit_code: The exit code a shell reports for a process ended by the signal: 128 + number.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
        super().__init__(self.exit_code)


class StopRequest:
    """The first signal that asks the process to stop, for work that is to end at a convenient moment.

    Attributes:
        number: The signal's number; None: none has come.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """While the block runs, the first signal is only noted; a second one has the effect that it had before.

        A further one has none if it is passed on by what has started the process, which may have got it, too, and
        decides when to wait no longer: SIGTERM by a parent or SLURM, and what torchrun passes on.
        """
        process = os.getpid()
        before = {number: signal.getsignal(number) for number in ASKING}
        passed_on = _passed_on()
        noted = [number for number, handler in before.items() if handler != signal.SIG_IGN]
        if threading.current_thread() is not threading.main_thread():
            noted = []  # only the main thread can set handlers

        def note(number: int, frame: FrameType | None) -> None:
            if os.getpid() == process and (self.number is None or number in passed_on):
                self.number = self.number or number
                return
            signal.signal(number, before[number] if os.getpid() == process else signal.SIG_DFL)
            os.kill(os.getpid(), number)

        for number in noted:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number in noted:
                signal.signal(number, before[number])

    def obey(self) -> None:
        """Raise :class:`Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)


def _passed_on() -> tuple[int, ...]:
    """The signals that what has started this process passes on to it, or follows up another one with."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun, which kills its processes 30 seconds later
        return tuple(
            number for number in ASKING if number in (signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGHUP", 0))
        )
    return (signal.SIGTERM,) if parent_process() is not None or "SLURM_JOB_ID" in os.environ else ()


@contextmanager
def signals_raise() -> Iterator[None]:
    """While the block runs, signals that ask the process to stop raise :class:`Stopped` in the main thread.

    A signal that is already ignored, as under ``nohup``, stays ignored. In processes forked inside the block, the
    signals have their default effect. After the first signal, further ones are ignored while the process shuts down;
    only a second Ctrl-C ends it immediately.
    """
    process, report = os.getpid(), sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            ignore_further()
            raise Stopped(number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def ask_again(ignored: sys.UnraisableHookArgs) -> None:
        """Raise ``Stopped`` again a moment later where Python ignored it, as in a destructor."""
        if isinstance(ignored.exc_value, Stopped):
            for number in chosen:
                signal.signal(number, stop)
            threading.Timer(0.01, os.kill, (process, ignored.exc_value.number)).start()
        else:
            report(ignored)

    chosen = [number for number in ASKING if signal.getsignal(number) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        chosen = []  # only the main thread can set handlers
    before = {number: signal.signal(number, stop) for number in chosen}
    sys.unraisablehook = ask_again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_further() -> None:
    """Ignore signals while the process shuts down; only Ctrl-C, unless it is ignored already, ends it immediately."""
    if threading.current_thread() is threading.main_thread():  # only the main thread can set handlers
        for number in ASKING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _end_at_once if number == signal.SIGINT else signal.SIG_IGN)


def leave_signals_to_parent() -> None:
    """In a child process: exit at a SIGTERM of the parent alone.

    Ctrl-C and batch systems send signals to all processes of a job, and a parent that first finishes its step needs its
    children for that.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        threading.Thread(target=_end_when_parent_asks, daemon=True).start()


def _end_when_parent_asks() -> None:
    while True:
        found = signal.sigwaitinfo(ASKING)
        if (found.si_signo, found.si_pid) == (signal.SIGTERM, os.getppid()):
            os._exit(0)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    for process in active_children():
        process.kill()
    os._exit(128 + number)
