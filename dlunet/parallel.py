"""Process many cases in parallel processes; one bad case does not stop the others."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import psutil

from dlunet.errors import UserError
from dlunet.progress import progress_bar

#: Linux's shared memory, and the bytes that the locks and queues of a process pool take there.
SHARED_MEMORY, POOL_BYTES = Path("/dev/shm"), 2**18

#: What limits the threads of PyTorch, NumPy and SimpleITK in a process that has not loaded them yet.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")

#: Seconds to wait for a terminated process before it is killed.
PATIENCE = 10.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each_case(
    what: str, work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[tuple[Item, Result | UserError]]:
    """Yield each item with its result or error, in order of completion, and show a progress bar.

    Args:
        what: One word for the progress bar that describes the work.
        work: A module-level function, or a ``functools.partial`` of one with the arguments common to all items; a
            UserError that it raises is yielded as the item's outcome.
        items: The cases.
        workers: Number of processes; by default one per available core.

    Raises:
        UserError: A process was killed, or there is too little shared memory; items yielded before are finished.
    """
    workers = max(1, min(workers or available_cores(), len(items)))
    with progress_bar(what, len(items)) as advance:
        for outcome in _in_turn(work, items) if workers == 1 else _in_parallel(what, work, items, workers):
            advance()
            yield outcome


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_turn(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | UserError]]:
    for item in items:
        yield item, _outcome(work, item)


def _in_parallel(
    what: str, work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result | UserError]]:
    check_shared_memory(POOL_BYTES, f"{what} in {workers} processes", "data.workers=1")
    others = set(active_children())
    # Spawned, not forked: SimpleITK and PyTorch have threads, which do not survive a fork.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker)
    try:
        with _one_thread_per_process():
            futures = {pool.submit(_outcome, work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{what}: one of {workers} processes was killed, probably out of memory; finished cases are kept; rerun "
            "the command with one process, which needs the least memory: data.workers=1, or, where the command has no "
            "such setting, taskset -c 0 before it"
        ) from None
    except BaseException:  # an interrupt does not wait for the cases in progress
        end_processes(others)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Limit processes that are started meanwhile to one thread each: together they already use all cores."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    """Initialise a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent decides when this one ends
    end_with_parent()


def end_with_parent() -> None:
    """Exit as soon as the parent ends: a killed parent cannot stop its workers, and their copies of its locks last."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def end_processes(others: Container[BaseProcess] = (), patience: float = PATIENCE) -> None:
    """End the child processes except ``others``; otherwise this process would wait for them before it exits.

    Args:
        others: Processes that go on.
        patience: Seconds to wait for a terminated process before it is killed.
    """
    own = [process for process in active_children() if process not in others]
    for process in own:
        process.terminate()
    deadline = time.monotonic() + patience
    for process in own:
        process.join(max(0.0, deadline - time.monotonic()))
        process.kill()
    for orphan in _started_unnoticed():
        orphan.kill()
        orphan.wait(PATIENCE)


def _started_unnoticed() -> list[psutil.Process]:
    """Children unknown to multiprocessing: a signal was raised between their start and their registration."""
    known, own_command = {process.pid for process in active_children()}, psutil.Process().cmdline()
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            # A forked process has its parent's command line, a spawned one has multiprocessing's; other programs, such
            # as wandb's, have their own.
            command = child.cmdline()
            if child.pid not in known and (command == own_command or "--multiprocessing-fork" in command):
                found.append(child)
    return found


def check_shared_memory(needed: int, purpose: str, without: str) -> None:
    """Check that there is enough shared memory for passing data between processes.

    Args:
        needed: Bytes needed.
        purpose: What they are needed for.
        without: The setting that needs no shared memory.

    Raises:
        UserError: There is too little, as in a container with the default size.
    """
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < needed:
        raise UserError(
            f"{SHARED_MEMORY}: {_readable(free)} of shared memory is free; {purpose} needs up to {_readable(needed)}; "
            f"increase it (docker run --shm-size=2g, or --ipc=host), or set {without}"
        )


def _readable(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _outcome(work: Callable[[Item], Result], item: Item) -> Result | UserError:
    """The result, or the UserError as a value."""
    try:
        return work(item)
    except UserError as error:
        return error
