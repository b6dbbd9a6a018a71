"""Measures the cost of prediction as in FLARE22: samples every 0.1 s and areas under the curves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import psutil
import torch

from dlunet.files import write_bytes

#: Seconds between two samples.
INTERVAL = 0.1
MEBI = 2**20


@dataclass(frozen=True)
class Sample:
    """One sample: seconds since the start, resident memory in MB, CPU in % of all cores, GPU memory in MB."""

    time: float
    ram_mb: float
    cpu_percent: float
    gpu_mb: float


@dataclass(frozen=True)
class Cost:
    """The cost of one case: a row of ``efficiency.csv``. An area is the sum of values times 0.1 s.

    Cases overlap: the next one is read while the network runs. A case's time starts at the end of the previous case.
    """

    case: str
    seconds: float
    ram_peak_mb: float
    ram_area_mb_s: float
    cpu_area_percent_s: float
    gpu_peak_mb: float
    gpu_area_mb_s: float


class Monitor:
    """Samples this process every 0.1 s while the ``with`` block runs."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self._process = psutil.Process(os.getpid())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._start = self._case_start = time.perf_counter()
        self._case_first = 0

    def __enter__(self) -> Monitor:
        self._process.cpu_percent()  # the first call returns 0 and starts the measurement
        self._look()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def finish(self, case: str) -> Cost:
        """The cost of the case that has just finished."""
        self._look()
        now = time.perf_counter()
        samples, seconds = self.samples[self._case_first :], now - self._case_start
        self._case_first, self._case_start = len(self.samples), now
        lengths = _lengths(samples, now - self._start - seconds)
        return Cost(
            case,
            round(seconds, 3),
            round(max(sample.ram_mb for sample in samples), 1),
            round(sum(sample.ram_mb * length for sample, length in zip(samples, lengths, strict=True)), 1),
            round(sum(sample.cpu_percent * length for sample, length in zip(samples, lengths, strict=True)), 1),
            round(max(sample.gpu_mb for sample in samples), 1),
            round(sum(sample.gpu_mb * length for sample, length in zip(samples, lengths, strict=True)), 1),
        )

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._look()

    def _look(self) -> None:
        self.samples.append(
            Sample(
                time.perf_counter() - self._start,
                self._process.memory_info().rss / MEBI,
                self._process.cpu_percent() / (os.cpu_count() or 1),
                _gpu_memory(),
            )
        )


def _lengths(samples: Sequence[Sample], start: float) -> list[float]:
    """The time that each sample represents: since the previous one."""
    times = [start, *(sample.time for sample in samples)]
    return [max(0.0, after - before) for before, after in pairwise(times)]


def _gpu_memory() -> float:
    """MB in use on the GPU, as nvidia-smi reports it; 0 if PyTorch has not initialised a GPU."""
    if not torch.cuda.is_initialized():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / MEBI


def as_row(cost: Cost) -> dict[str, str]:
    """A cost as a table row."""
    return {key: str(value) for key, value in asdict(cost).items()}


def plot_costs(samples: Sequence[Sample], path: Path) -> None:
    """Draw memory and CPU over time."""
    from matplotlib.figure import Figure

    from dlunet.reporting.figures import RUN_COLORS, house_style, png

    curves = [("RAM, MB", "ram_mb"), ("CPU, % of all cores", "cpu_percent"), ("GPU memory, MB", "gpu_mb")]
    if not any(sample.gpu_mb for sample in samples):
        curves.pop()
    with house_style():
        figure = Figure(figsize=(8, 2 * len(curves)), layout="constrained")
        for axes, (title, name), color in zip(
            figure.subplots(len(curves), 1, sharex=True), curves, RUN_COLORS, strict=False
        ):
            axes.plot([sample.time for sample in samples], [getattr(sample, name) for sample in samples], color=color)
            axes.set(ylabel=title)
            axes.set_ylim(bottom=0)
        axes.set(xlabel="s")
    write_bytes(path, png(figure))
