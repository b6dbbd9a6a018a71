"""The same work on many cases, in several processes, where one bad case does not stop the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

import torch

from dlunet.errors import UserError
from dlunet.progress import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each_case(
    what: str, work: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[tuple[Item, Result | UserError]]:
    """Yield each item with what became of it, in the order in which they are done, and show a progress bar.

    Args:
        what: What is done, in a word, for the progress bar.
        work: A function at the top level of a module; what keeps one item from being done is its UserError.
        items: The cases.
        workers: Processes; by default one a core that this process may use.

    Raises:
        UserError: A process was stopped from outside; what was yielded before is done.
    """
    workers = max(1, min(workers or available_cores(), len(items)))
    with progress_bar(what, len(items)) as advance:
        for outcome in _in_turn(work, items) if workers == 1 else _in_parallel(what, work, items, workers):
            advance()
            yield outcome


def available_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_turn(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result | UserError]]:
    for item in items:
        yield item, _outcome(work, item)


def _in_parallel(
    what: str, work: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result | UserError]]:
    # Spawned, not forked: SimpleITK and PyTorch hold threads, which do not survive a fork. One thread a process: the
    # processes themselves fill the cores.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        futures = {pool.submit(_outcome, work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            f"{what}: one of {workers} processes was stopped from outside, most likely for want of memory; what is "
            "finished is kept; give the command again with one process, which needs the least memory (data.workers=1)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the cases that have not begun


def _outcome(work: Callable[[Item], Result], item: Item) -> Result | UserError:
    """The result, or the error as a value."""
    try:
        return work(item)
    except UserError as error:
        return error
