"""``metrics.csv``, the record of a run that the report reads; a continued run goes on writing it."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger


def metrics_logger(output: Path, epochs_done: int) -> CSVLogger:
    """A logger that writes ``output/metrics.csv``.

    Lightning's logger deletes the file of an earlier run. Here the rows of the epochs that a continued run will not
    repeat are written back first.

    Args:
        output: The run folder.
        epochs_done: The epochs behind the checkpoint that the run continues from; 0 for a new run.
    """
    kept = [row for row in _read_rows(output / "metrics.csv") if int(row["epoch"]) < epochs_done]
    logger = CSVLogger(output, name="", version="", flush_logs_every_n_steps=20)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")
        logger.experiment.metrics.extend(kept)
    logger.save()
    return logger


def _read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    # What a crash of the machine left unwritten is NULs; a row that was cut off when the run was killed has no epoch.
    lines = path.read_text(encoding="utf-8", errors="replace").partition("\0")[0].splitlines()
    return [row for row in csv.DictReader(lines) if (row.get("epoch") or "").isdecimal() and None not in row]
