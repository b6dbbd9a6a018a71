"""``metrics.csv``, the logged metrics of a run as read by the report; a resumed run appends to it."""

from __future__ import annotations

import csv
import math
import os
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from dlunet.errors import OUT_OF_PLACE, WriteError
from dlunet.run_layout import RunLayout
from dlunet.training.full_disk import or_go_on
from dlunet.training.launch import rank


class MetricsFile(CSVLogger):
    """Lightning's logger; rows that cannot be written are kept in memory until they can be.

    Args:
        output: The run folder.
        on_full: See :func:`or_go_on`.
    """

    def __init__(self, output: Path, on_full: str) -> None:
        super().__init__(output, name="", version="", flush_logs_every_n_steps=20)
        self.path = RunLayout(output).metrics
        self.on_full = on_full

    @rank_zero_only
    def save(self) -> None:
        """Append the rows; the file is as it was if there is no room for all of them."""
        columns = list(self.experiment.metrics_keys)
        size = self.path.stat().st_size if self.path.exists() else 0
        # Lightning writes the file anew where there is another column.
        is_new = not set().union(*self.experiment.metrics) <= {*columns}
        rows = self.path.read_bytes() if is_new and size else None
        with or_go_on(self.on_full):
            try:
                super().save()
            except OSError as error:
                if error.errno not in OUT_OF_PLACE:
                    raise
                self.experiment.metrics_keys = columns
                self._restore(size, rows)
                raise WriteError.of(self.path, error) from None

    def _restore(self, size: int, rows: bytes | None) -> None:
        if not size:
            self.path.unlink(missing_ok=True)
        elif rows is not None:
            self.path.write_bytes(rows)
        else:
            os.truncate(self.path, size)


def metrics_logger(output: Path, steps_done: int, on_full: str = "stop") -> CSVLogger:
    """A logger that writes ``output/metrics.csv``.

    Lightning's logger deletes the file of an earlier run. Here the rows of steps that a resumed run does not repeat are
    written back first.

    Args:
        output: The run folder.
        steps_done: The number of steps before the checkpoint to resume from; 0 for a new run.
        on_full: See :func:`or_go_on`.
    """
    kept = [row for row in _read_rows(RunLayout(output).metrics) if int(row["step"]) < steps_done]
    logger = MetricsFile(output, on_full)
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
