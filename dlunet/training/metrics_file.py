"""``metrics.csv``, the logged metrics of a run as read by the report; a resumed run appends to it."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger

from dlunet.run_layout import RunLayout
from dlunet.training.launch import rank


def metrics_logger(output: Path, steps_done: int) -> CSVLogger:
    """A logger that writes ``output/metrics.csv``.

    Lightning's logger deletes the file of an earlier run. Here the rows of steps that a resumed run does not repeat are
    written back first.

    Args:
        output: The run folder.
        steps_done: The number of steps before the checkpoint to resume from; 0 for a new run.
    """
    kept = [row for row in _read_rows(RunLayout(output).metrics) if int(row["step"]) < steps_done]
    logger = CSVLogger(output, name="", version="", flush_logs_every_n_steps=20)
    if rank() != 0:  # only the first of several processes writes
        return logger
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        logger.experiment.metrics.extend(kept)
    logger.save()
    return logger


def best_value(output: Path, name: str) -> float | None:
    """The largest value of a metric of a run; None if it has none."""
    values = [float(row[name]) for row in _read_rows(RunLayout(output).metrics) if row.get(name)]
    return max((value for value in values if not math.isnan(value)), default=None)


def _read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    # After a crash of the machine, data that was not written out appears as NUL bytes.
    lines = path.read_text(encoding="utf-8", errors="replace").partition("\0")[0].splitlines()
    return [row for row in csv.DictReader(lines) if _is_whole(row)]


def _is_whole(row: dict) -> bool:
    """Whether a row has a numeric step and exactly the expected columns; a row truncated by a kill has too few."""
    if None in row or None in row.values() or not {"epoch", "step"} <= row.keys():
        return False
    return row["step"].isdecimal() and (row["epoch"] or "0").isdecimal()
