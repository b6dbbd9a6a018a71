"""Batches are made ahead of the steps, by worker processes that live as long as the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Any

import SimpleITK as sitk
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dlunet.errors import UserError
from dlunet.parallel import end_with_parent
from dlunet.sampling.workers import PREFETCHED
from dlunet.signals import leave_signals_to_parent

#: Seconds within which the signal of a killed worker arrives.
SIGNAL_DELAY = 1.0

#: Called with an epoch and some of its steps in ascending order; yields their batches.
MakeBatches = Callable[[int, range], Iterator[Any]]


class Ahead:
    """The batches of a run, epoch by epoch; workers continue with the next epoch while one ends.

    Worker k of n makes steps k, k + n, …, each with the patches of all streams, and waits where :data:`PREFETCHED` of
    its batches are ready.

    Args:
        make: Makes the batches. It may only depend on the epoch and the step, not on what was made before.
        steps_per_epoch: Steps per epoch.
        num_workers: Number of processes; 0: each batch is made by this process, once it is needed.

    Attributes:
        waited: Seconds that all batches so far were waited for.
        next_step: The step, counted from the first epoch, of the next batch.
    """

    def __init__(self, make: MakeBatches, steps_per_epoch: int, num_workers: int) -> None:
        self.make = make
        self.steps_per_epoch = steps_per_epoch
        self.num_workers = num_workers
        self.waited = 0.0
        self._batches: Iterator[Any] | None = None
        self.next_step = 0

    def epoch(self, number: int, first: int = 0) -> Epoch:
        """The batches of an epoch, from one of its steps on."""
        return Epoch(self, number, first)

    def batches(self, epoch: int, first: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch, from its step ``first`` on.

        Raises:
            UserError: As raised by ``make``, here or in a worker.
            RuntimeError: A worker was killed ("DataLoader worker (pid …"), or as raised by ``make``.
        """
        begin = epoch * self.steps_per_epoch + first
        if self._batches is None or self.next_step != begin:
            self._begin(begin)
        for _ in range(first, self.steps_per_epoch):
            batch = self._receive()
            self.next_step += 1
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the workers, which is what PyTorch's iterator does when it is deleted."""
        self._batches = None

    @property
    def exit_codes(self) -> list[int]:
        """The exit codes other than 0 of workers that have ended; a negative one is the signal that killed it."""
        return [worker.exitcode for worker in getattr(self._batches, "_workers", []) if worker.exitcode]

    def _receive(self) -> Any:
        assert self._batches is not None
        begin = time.perf_counter()
        try:
            return next(self._batches)
        except (ConnectionError, EOFError) as error:
            time.sleep(SIGNAL_DELAY)  # if the worker was killed while sending, PyTorch's handler may raise an error now
            raise RuntimeError("DataLoader worker (pid unknown) was killed while it sent a batch") from error
        finally:
            self.waited += time.perf_counter() - begin

    def _begin(self, first: int) -> None:
        self.close()
        # Forked, not spawned: they share the memory of this process instead of importing everything again.
        how = {"multiprocessing_context": "fork", "prefetch_factor": PREFETCHED, "worker_init_fn": _begin_worker}
        loader = DataLoader(
            _Steps(self.make, self.steps_per_epoch, first),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_made,
            generator=torch.Generator(),  # its own: the number of workers must not affect what a network draws
            **(how if self.num_workers else {}),  # type: ignore[arg-type]
        )
        self._batches, self.next_step = iter(loader), first


@dataclass(frozen=True)
class Epoch:
    """The batches of one epoch, from its step ``first`` on; its length is that of the whole epoch.

    Lightning ends the workers of a ``DataLoader`` with each epoch; it leaves those of another iterable alone.
    """

    ahead: Ahead
    number: int
    first: int

    def __len__(self) -> int:
        return self.ahead.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        return self.ahead.batches(self.number, self.first)


class _Steps(IterableDataset):
    """The batches of a worker, without end; a UserError is the last."""

    def __init__(self, make: MakeBatches, steps_per_epoch: int, first: int) -> None:
        self.make = make
        self.steps_per_epoch = steps_per_epoch
        self.first = first

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        try:
            for epoch in count(self.first // self.steps_per_epoch):
                done = epoch * self.steps_per_epoch - self.first
                begin = max(0, -done)
                own = begin + (number - done - begin) % workers
                yield from self.make(epoch, range(own, self.steps_per_epoch, workers))
        except UserError as error:  # passed on as a value: an exception would arrive with the worker's traceback
            yield error


def _begin_worker(number: int) -> None:
    leave_signals_to_parent()
    end_with_parent()
    sys.excepthook = _report_unless_hung_up
    # PyTorch limits only its own threads; SimpleITK's would take cores from the step.
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _report_unless_hung_up(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Report an error in the thread that hands over tensors, unless it is that the run was stopped meanwhile.

    Errors of a worker's main thread are sent to the run instead.
    """
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


def _as_made(batch: Any) -> Any:
    return batch
