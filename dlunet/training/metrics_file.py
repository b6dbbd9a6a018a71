"""``metrics.csv``, the logged metrics of a run as read by the report; a resumed run appends to it."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from dlunet.errors import OUT_OF_PLACE, WriteError
from dlunet.files import write_bytes
from dlunet.run_layout import RunLayout
from dlunet.training.full_disk import OnFull
from dlunet.training.launch import rank

log = logging.getLogger(__name__)


class _Rows(ExperimentWriter):
    """Lightning's writer of rows, which would first delete the file of the run that is resumed."""

    def _check_log_dir_exists(self) -> None:
        """Leave the file."""


class MetricsFile(CSVLogger):
    """Lightning's logger, which leaves the file whole if there is no room; its rows are then kept until there is.

    Args:
        output: The run folder.
        on_full: See :class:`dlunet.training.full_disk.OnFull`.
    """

    def __init__(self, output: Path, on_full: str) -> None:
        super().__init__(output, name="", version="", flush_logs_every_n_steps=20)
        self.path = RunLayout(output).metrics
        self._experiment = _Rows(self.log_dir)
        self.on_full = OnFull(on_full)

    @rank_zero_only
    def save(self) -> None:
        """Append the rows that were logged since."""
        with self.on_full:
            columns = set().union(*self.experiment.metrics)
            if self.path.exists() and not columns <= {*self.experiment.metrics_keys}:
                self._widen(columns)
            size = self.path.stat().st_size if self.path.exists() else None
            try:
                super().save()
            except OSError as error:
                self._undo(size)
                if error.errno in OUT_OF_PLACE:
                    raise WriteError.of(self.path, error) from None
                raise

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Append the last rows."""
        super().finalize(status)
        if self._experiment is not None and (rows := self.experiment.metrics):
            log.warning("warning: %s: the last %d rows are lost, for lack of room", self.path, len(rows))

    def _widen(self, further: Collection[str]) -> None:
        """Write the file anew with further columns; Lightning would write over it."""
        with self.path.open(newline="") as file:
            text, columns = _as_csv(list(csv.DictReader(file)), further)
        write_bytes(self.path, text)
        self.experiment.metrics_keys = columns

    def _undo(self, size: int | None) -> None:
        if size is None:
            self.path.unlink(missing_ok=True)
            self.experiment.metrics_keys = []
        else:
            os.truncate(self.path, size)


def metrics_logger(output: Path, steps_done: int, on_full: str = "stop") -> CSVLogger:
    """A logger that writes ``output/metrics.csv``.

    The rows of steps that a resumed run does not repeat are kept.

    Args:
        output: The run folder.
        steps_done: The number of steps before the checkpoint to resume from; 0 for a new run.
        on_full: See :class:`MetricsFile`.
    """
    path = RunLayout(output).metrics
    known = _read_rows(path)
    kept = [row for row in known if int(row["step"]) < steps_done]
    logger = MetricsFile(output, on_full)
    if rank() != 0:  # only the first of several processes writes
        return logger
    if steps_done and not known and path.exists():
        log.warning("warning: %s: is damaged: the metrics of the %d steps so far are lost", path, steps_done)
    if kept:
        text, logger.experiment.metrics_keys = _as_csv(kept)
        write_bytes(path, text)
    else:
        path.unlink(missing_ok=True)
    return logger


def best_value(output: Path, name: str) -> float | None:
    """The largest value of a metric that a run has logged once per epoch at most; None if it has none."""
    return max(values_by_epoch(output, name).values(), default=None)


def values_by_epoch(output: Path, name: str) -> dict[int, float]:
    """The values of a metric that a run has logged once per epoch at most, by epoch, counted from 0; NaN left out."""
    values = {
        int(row["epoch"] or 0): float(row[name]) for row in _read_rows(RunLayout(output).metrics) if row.get(name)
    }
    return {epoch: value for epoch, value in values.items() if not math.isnan(value)}


def _read_rows(path: Path) -> list[dict]:
    if not path.exists():
        return []
    # After a crash of the machine, data that was not written out appears as NUL bytes.
    lines = path.read_text(encoding="utf-8", errors="replace").partition("\0")[0].splitlines()
    return [row for row in csv.DictReader(lines) if _is_whole(row)]


def _as_csv(rows: Sequence[Mapping[str, str]], further: Collection[str] = ()) -> tuple[bytes, list[str]]:
    """A file of these rows, with their columns and further ones, and the names of the columns."""
    columns = sorted({*further}.union(*rows))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(), columns


def _is_whole(row: dict) -> bool:
    """Whether a row has a numeric step and exactly the expected columns; a row truncated by a kill has too few."""
    if None in row or None in row.values() or not {"epoch", "step"} <= row.keys():
        return False
    return row["step"].isdecimal() and (row["epoch"] or "0").isdecimal()
