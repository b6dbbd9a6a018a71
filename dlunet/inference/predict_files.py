"""Segments CT files into label files; reading and writing overlap with the network."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dlunet import stamps
from dlunet.errors import OUT_OF_MEMORY, SomeCasesFailed, UserError, WriteError, few
from dlunet.files import write_bytes
from dlunet.inference.case_tables import read_case_table
from dlunet.inference.efficiency import Monitor, as_row, plot_costs
from dlunet.inference.output_folder import OutputFolder
from dlunet.inference.postprocessing import organ_volumes, swapped_sides
from dlunet.inference.predictor import Predictor
from dlunet.labels import LabelSet
from dlunet.preparation import check_size
from dlunet.progress import CaseBars, case_bars, progress_bar
from dlunet.run_layout import PredictionsLayout
from dlunet.shards import ALL, Shard
from dlunet.volumes import Geometry, case_name, read_ct, read_labels, write_labels

logger = logging.getLogger(__name__)

#: Files beside the label maps: cost, its plot, and the class volumes.
COSTS, COSTS_PLOT, VOLUMES = PredictionsLayout(Path()).costs.name, "efficiency.png", "volumes.csv"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Extras:
    """Optional output besides label maps.

    Attributes:
        volumes: The volume of each class in ml, in ``volumes.csv``; a table that is there gets all further cases.
        overlay: An overlay image per case, ``NAME.png``.
        plot: Memory and CPU over time, in ``efficiency.png``.
    """

    volumes: bool = False
    overlay: bool = False
    plot: bool = False


@dataclass(frozen=True)
class _Read:
    """A case that is ready for the network. The CT itself is kept only for an overlay."""

    path: Path
    stamp: stamps.Stamps
    prepared: Tensor
    shape: tuple[int, ...]
    spacing: tuple[float, float, float]
    stored: Geometry
    warnings: tuple[str, ...]
    image: np.ndarray | None


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    output: Path,
    replace: bool = False,
    extras: Extras = Extras(),
    strict: bool = False,
    shard: Shard = ALL,
) -> None:
    """Segment CT files; cases with existing labels are skipped, unless their CT has changed.

    While the network runs on one case, the next is read and prepared, and the labels of the previous one are written.

    Args:
        predictor: The predictor.
        images: CT files.
        output: The folder for one ``NAME.nii.gz`` per case and ``efficiency.csv``, see
            :class:`dlunet.inference.efficiency.Cost`.
        replace: Delete labels of another network or other settings instead of refusing the folder.
        extras: Optional output, for finished cases as well.
        strict: Refuse CTs with warnings, such as values that are unlikely to be HU. By default they are segmented, and
            the warning is logged and recorded in ``prediction.json``. Finished cases with warnings are named, and kept.
        shard: Which of the CTs this job segments; other jobs segment the others, into the same folder.

    Raises:
        SomeCasesFailed: Some cases could not be segmented, while the others are finished.
        WriteError: A result could not be written, such as on a full disk, or another command has claimed the folder
            with other settings in the meantime; finished cases are kept.
        UserError: No case could be segmented, or the folder contains labels of another network or other settings.
    """
    folder = OutputFolder(output)
    targets = folder.claim(images, predictor.settings, replace, shard)
    finished = {path: target for path, target in targets.items() if target.exists()}
    todo = [path for path in targets if path not in finished]
    recorded = folder.warnings() if strict else {}
    if doubtful := [path for path in finished if case_name(path) in recorded]:
        logger.warning(
            "warning: %s: label maps with warnings are kept, since they were made without strict=true; delete them to "
            "have their CTs checked: %s",
            output,
            few([case_name(path) for path in doubtful], 20),
        )
    writer = _Writer(folder, predictor.settings, predictor.bundle.labels, extras)
    writer.complete(finished)
    failures: list[Path] = []

    def done(path: Path, written: Future[None]) -> None:
        _outcome(written.result, path, failures)

    with (
        Monitor() as monitor,
        case_bars(len(targets), len(targets) - len(todo)) as bars,
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
    ):
        last: tuple[Path, Future[None]] | None = None
        for path, future in _one_ahead(reading, lambda path: _read(predictor, path, extras.overlay, strict), todo):
            read = _outcome(future.result, path, failures)
            labels = None if read is None else _outcome(partial(_label, predictor, read, bars), path, failures)
            cost = monitor.finish(case_name(path))  # also of a case that failed: it is not a cost of the next one
            if read is not None and labels is not None:
                if last:
                    done(*last)  # at most one case waits to be written
                last = path, writing.submit(writer.write, targets[path], labels, read, as_row(cost))
            bars.advance()
        if last:
            done(*last)
    if todo and extras.plot and shard.is_all:  # each shard would replace the plot of the others
        plot_costs(monitor.samples, output / COSTS_PLOT)
    if failures:
        kind = SomeCasesFailed if len(failures) < len(targets) else UserError
        raise kind(
            f"{len(failures)} of {len(targets)} cases could not be segmented, see the messages above: "
            f"{few(failures, 3)}"
        )


def _one_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Future[Result]]]:
    """Yield each item with its future, after work on the next item has been submitted."""
    begun = deque(pool.submit(work, item) for item in items[:1])
    for number, item in enumerate(items, start=1):
        begun.extend(pool.submit(work, following) for following in items[number : number + 1])
        yield item, begun.popleft()


def _outcome(work: Callable[[], Result], path: Path, failures: list[Path]) -> Result | None:
    """The result; if the case failed, log the error, record the failure and return None.

    Raises:
        WriteError: A result could not be written; neither could those of other cases.
    """
    try:
        return work()
    except WriteError:
        raise
    except UserError as error:
        logger.error("%s", error)
    except (MemoryError, RuntimeError) as error:
        is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_known and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        instead = ", or choose device=cpu" if isinstance(error, torch.OutOfMemoryError) else ""
        logger.error("%s: not enough memory for this CT; free some%s; see docs/inference.md, Memory", path, instead)
    failures.append(path)
    return None


def _read(predictor: Predictor, path: Path, keep_image: bool, strict: bool) -> _Read:
    stamp = stamps.stamp_if_readable([path])  # before the CT is read
    volume = read_ct(path, keep_integers=True)
    if strict and volume.warnings:
        raise UserError(f"{path}: {'; '.join(volume.warnings)}; correct the file, or segment it with strict=false")
    check_size(path, volume, predictor.bundle.plan)
    image = volume.array if keep_image else None
    prepared = predictor.prepare(volume)
    return _Read(path, stamp, prepared, volume.array.shape, volume.spacing, volume.stored, volume.warnings, image)


def _label(predictor: Predictor, read: _Read, bars: CaseBars) -> np.ndarray:
    bars.begin(predictor.count_tiles(read.prepared))
    return predictor.label(read.prepared, read.shape, bars.after_tile)


@dataclass(frozen=True)
class _Writer:
    """Writes the output of a case; the label map last, since it marks the case as finished."""

    folder: OutputFolder
    settings: dict[str, Any]
    labels: LabelSet
    extras: Extras

    def write(self, target: Path, labels: np.ndarray, read: _Read, cost: dict[str, str]) -> None:
        name, picture = case_name(read.path), self._picture(case_name(read.path))
        is_ours = not picture.exists() or self.folder.knows(read.path)
        if read.image is not None and not is_ours:
            raise UserError(f"{picture}: was made by something else; expected no such file; choose another output")
        warnings = [*read.warnings, *swapped_sides(labels, self.labels)]
        for message in warnings:
            logger.warning("warning: %s: %s", name, message)
        self.folder.note(read.path, self.settings, read.stamp, warnings)
        # What an earlier command wrote of the case is about other labels: it is replaced or removed.
        if self.extras.volumes or self._volumes.exists():
            self._add_volumes(name, labels, read.spacing)
        if read.image is not None:
            self._draw(name, read.image, labels, read.spacing)
        elif is_ours:
            picture.unlink(missing_ok=True)
        self.folder.add(COSTS, cost)
        write_labels(labels, target, read.stored)

    def complete(self, finished: Mapping[Path, Path]) -> None:
        """Write the volumes and pictures that finished cases, label maps by CT, lack: an earlier command left them out.

        A case that cannot be read is left out with a warning.
        """
        measured = read_case_table(self._volumes) if self.extras.volumes else {}
        no_volumes = {path for path in finished if self.extras.volumes and case_name(path) not in measured}
        no_picture = {path for path in finished if self.extras.overlay and not self._picture(case_name(path)).exists()}
        todo = [path for path in finished if path in no_volumes | no_picture]
        if not todo:
            return
        with progress_bar("volumes and pictures of finished cases", len(todo)) as advance:
            for path in todo:
                name = case_name(path)
                try:
                    labels = read_labels(finished[path], self.labels.num_classes)
                    if path in no_volumes:
                        self._add_volumes(name, labels.array, labels.spacing)
                    if path in no_picture:
                        self._draw(name, read_ct(path, keep_integers=True).array, labels.array, labels.spacing)
                except UserError as error:
                    logger.warning("warning: the finished case %s still lacks its volumes or picture: %s", name, error)
                advance()

    @property
    def _volumes(self) -> Path:
        return self.folder.path / VOLUMES

    def _picture(self, name: str) -> Path:
        return self.folder.path / f"{name}.png"

    def _add_volumes(self, name: str, labels: np.ndarray, spacing: Sequence[float]) -> None:
        volumes = organ_volumes(labels, spacing, self.labels)
        self.folder.add(VOLUMES, {"case": name} | {organ: f"{ml:.3f}" for organ, ml in volumes.items()})

    def _draw(self, name: str, image: np.ndarray, labels: np.ndarray, spacing: Sequence[float]) -> None:
        from dlunet.reporting import overlay_png

        write_bytes(self._picture(name), overlay_png(image, labels, spacing, self.labels))
