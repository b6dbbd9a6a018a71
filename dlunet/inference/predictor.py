"""From CT files to label files, with a trained network."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dlunet.errors import UserError
from dlunet.files import read_any_text, read_case_table, remove_leftovers, write_bytes, write_case_table, write_text
from dlunet.inference.efficiency import Monitor, as_row, plot_costs
from dlunet.inference.engines import Engine, TorchEngine
from dlunet.inference.postprocessing import organ_volumes, postprocess, swapped_sides
from dlunet.inference.regrid import labels_on_grid
from dlunet.inference.sliding_window import FLIPPED_AXES, Flips, stream_logits, tile_starts
from dlunet.labels import LabelSet
from dlunet.locks import FileLock
from dlunet.networks import Bundle
from dlunet.preparation import prepare_image
from dlunet.progress import CaseBars, case_bars
from dlunet.volumes import (
    Geometry,
    Volume,
    case_name,
    is_series,
    list_volumes,
    read_ct,
    unreadable_volumes,
    write_labels,
)

logger = logging.getLogger(__name__)

#: Beside label maps: what they were made with, what they cost, and the organs' volumes.
RECORD, COSTS, COSTS_PLOT, VOLUMES = "prediction.json", "efficiency.csv", "efficiency.png", "volumes.csv"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Predictor:
    """Segments CTs on their own grid.

    Attributes:
        bundle: The network with its plan and labels.
        step: Distance between tiles as a part of the patch.
        flips: Test-time flips, see :func:`dlunet.inference.predict_logits`.
        engine: What runs the network; by default PyTorch, on the CPU.
        steps: Post-processing, of :data:`dlunet.inference.postprocessing.STEPS`.
    """

    bundle: Bundle
    step: float = 0.5
    flips: Flips = "none"
    engine: Engine | None = None
    steps: tuple[str, ...] = ()

    @cached_property
    def network(self) -> Engine:
        """The engine, once it is needed."""
        if self.engine is not None:
            return self.engine
        assert self.bundle.network is not None
        return TorchEngine(self.bundle.network)

    @property
    def settings(self) -> dict[str, Any]:
        """What its labels depend on, besides the CT."""
        return {
            "weights": self.bundle.digest,
            "labels": self.bundle.labels.to_dict(),
            "plan": self.bundle.plan.to_dict(),
            "step": self.step,
            "flips": self.flips,
            "engine": self.network.name,
            "postprocess": list(self.steps),
        }

    def segment(self, volume: Volume) -> np.ndarray:
        """Labels (z, y, x), uint8, on the grid of a CT in canonical orientation."""
        return self.label(self.prepare(volume), volume.array.shape)

    def prepare(self, volume: Volume) -> Tensor:
        """What the network sees of a CT: (1, z, y, x), normalised, at the plan's spacing."""
        return torch.from_numpy(prepare_image(volume.array, volume.spacing, self.bundle.plan))

    def label(self, prepared: Tensor, shape: Sequence[int], after_tile: Callable[[], None] | None = None) -> np.ndarray:
        """Labels on a CT's grid of ``shape`` (z, y, x), from what :meth:`prepare` made of the CT."""

        def network(tiles: Tensor) -> Tensor:
            logits = self.network(tiles)
            if after_tile:
                for _ in tiles:
                    after_tile()
            return logits

        on_device, patch = prepared.to(self.network.device), self.bundle.plan.patch_size
        slabs = stream_logits(network, on_device, patch, self.step, self.flips, self.network.tiles_at_once)
        return postprocess(labels_on_grid(slabs, prepared.shape[1:], shape), self.steps)

    def count_tiles(self, prepared: Tensor) -> int:
        """How often the network runs for a prepared CT."""
        patch = self.bundle.plan.patch_size
        shape = [max(size, least) for size, least in zip(prepared.shape[1:], patch, strict=True)]
        return prod(map(len, tile_starts(shape, patch, self.step))) * len(FLIPPED_AXES[self.flips])


@dataclass(frozen=True)
class Extras:
    """What is written besides label maps.

    Attributes:
        volumes: Each organ's volume in ml, in ``volumes.csv``.
        overlay: A picture of each case, ``NAME.png``.
        plot: Memory and processor over time, in ``efficiency.png``.
    """

    volumes: bool = False
    overlay: bool = False
    plot: bool = False


@dataclass(frozen=True)
class _Read:
    """A case that is ready for the network. The CT itself is kept only where a picture is wanted of it."""

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
) -> None:
    """Segment CT files; a case that already has its labels is skipped.

    While the network works on one case, the next is read and prepared, and the labels of the last are written.

    Args:
        predictor: What segments.
        images: CT files.
        output: The folder for ``NAME.nii.gz`` a case, and for ``efficiency.csv``, see
            :class:`dlunet.inference.efficiency.Cost`.
        replace: Delete labels of another network or other settings instead of refusing the folder.
        extras: What else is written.
        strict: Segment no CT of which there is something to warn, such as values that are hardly HU. By default it is
            segmented, and the warning is logged and kept in ``prediction.json``.

    Raises:
        UserError: Some case could not be segmented, and the others are done; or the folder holds labels of another
            network or other settings.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made a folder ({error.strerror}); choose another output") from None
    targets = _targets(images, output)
    _claim_folder(output, predictor.settings, {target: path for path, target in targets.items()}, replace)
    remove_leftovers(output)
    todo = [path for path, target in targets.items() if not target.exists()]
    writer = _Writer(output, predictor.bundle.labels, extras)
    failures: list[Path] = []

    def done(path: Path, written: Future[None]) -> None:
        _outcome(written.result, path, failures)

    with (
        Monitor() as monitor,
        case_bars(len(images), len(images) - len(todo)) as bars,
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
    ):
        last: tuple[Path, Future[None]] | None = None
        for path, future in _one_ahead(reading, lambda path: _read(predictor, path, extras.overlay, strict), todo):
            read = _outcome(future.result, path, failures)
            labels = None if read is None else _outcome(partial(_label, predictor, read, bars), path, failures)
            if read is not None and labels is not None:
                row = as_row(monitor.finish(case_name(path)))
                if last:
                    done(*last)  # at most one case waits for the disk
                last = path, writing.submit(writer.write, targets[path], labels, read, row)
            bars.advance()
        if last:
            done(*last)
    if todo and extras.plot:
        plot_costs(monitor.samples, output / COSTS_PLOT)
    if failures:
        names = ", ".join(map(str, failures[:3])) + (", …" if len(failures) > 3 else "")
        raise UserError(f"{len(failures)} of {len(images)} cases could not be segmented, see above: {names}")


def _targets(images: Sequence[Path], output: Path) -> dict[Path, Path]:
    """Where the labels of each image go."""
    names = [case_name(path) for path in images]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"several inputs are called {repeated[0]}: each case needs a name of its own, since labels go to "
            f"{output / repeated[0]}.nii.gz; rename one, or predict them into different folders"
        )
    within = [path for path in images if path.resolve().parent == output.resolve()]
    if within:
        raise UserError(
            f"{output}: holds the CTs that are to be segmented, such as {within[0].name}; labels have their names; "
            "choose another output"
        )
    longest = os.pathconf(output, "PC_NAME_MAX") - len(".nii.gz")
    for path, name in zip(images, names, strict=True):
        if len(os.fsencode(name)) > longest:
            raise UserError(
                f"{path}: has a name of {len(os.fsencode(name))} bytes; expected at most {longest}; rename it"
            )
    return {path: output / f"{name}.nii.gz" for path, name in zip(images, names, strict=True)}


def _one_ahead(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Future[Result]]]:
    """Each item with its result, where work on the next one has begun."""
    begun = deque(pool.submit(work, item) for item in items[:1])
    for number, item in enumerate(items, start=1):
        begun.extend(pool.submit(work, following) for following in items[number : number + 1])
        yield item, begun.popleft()


def _outcome(work: Callable[[], Result], path: Path, failures: list[Path]) -> Result | None:
    """The result; where the case failed, say so, note it, and return None."""
    try:
        return work()
    except UserError as error:
        logger.error("%s", error)
    except (MemoryError, torch.OutOfMemoryError):
        logger.error("%s: too little memory for this CT; free some, or choose device=cpu", path)
    failures.append(path)
    return None


def _read(predictor: Predictor, path: Path, keep_image: bool, strict: bool) -> _Read:
    volume = read_ct(path, keep_integers=True)
    if strict and volume.warnings:
        raise UserError(f"{path}: {'; '.join(volume.warnings)}; correct the file, or segment it with strict=false")
    image = volume.array if keep_image else None
    prepared = predictor.prepare(volume)
    return _Read(prepared, volume.array.shape, volume.spacing, volume.stored, volume.warnings, image)


def _label(predictor: Predictor, read: _Read, bars: CaseBars) -> np.ndarray:
    bars.begin(predictor.count_tiles(read.prepared))
    return predictor.label(read.prepared, read.shape, bars.after_tile)


@dataclass(frozen=True)
class _Writer:
    """Writes what belongs to a case; the label map last, since it marks the case as finished."""

    output: Path
    labels: LabelSet
    extras: Extras

    def write(self, target: Path, labels: np.ndarray, read: _Read, cost: dict[str, str]) -> None:
        name = case_name(target)
        warnings = [*read.warnings, *swapped_sides(labels, self.labels)]
        for message in warnings:
            logger.warning("warning: %s: %s", name, message)
        self._record(name, warnings)
        if self.extras.volumes:
            volumes = organ_volumes(labels, read.spacing, self.labels)
            self._add(VOLUMES, {"case": name} | {organ: f"{ml:.3f}" for organ, ml in volumes.items()})
        if self.extras.overlay:
            assert read.image is not None
            from dlunet.reporting import overlay_png

            write_bytes(self.output / f"{name}.png", overlay_png(read.image, labels, read.spacing, self.labels))
        self._add(COSTS, cost)
        write_labels(labels, target, read.stored)

    def _record(self, name: str, warnings: Sequence[str]) -> None:
        """Keep what there is to warn of in the folder's record."""
        with _writing(self.output):
            record = _read_record(self.output / RECORD)
            known = record.get("warnings", {})
            if warnings or name in known:
                others = {case: messages for case, messages in known.items() if case != name}
                changed = {**others, name: list(warnings)} if warnings else others
                write_text(self.output / RECORD, json.dumps({**record, "warnings": changed}, indent=2))

    def _add(self, table: str, row: dict[str, str]) -> None:
        path = self.output / table
        with _writing(self.output):
            write_case_table(path, read_case_table(path) | {row["case"]: row})


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """While the block runs, no other command changes the folder's tables and record: several may share the cases."""
    lock = FileLock(output / ".writing", remove=True)
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.release()


def find_images(source: Path) -> list[Path]:
    """The CTs that an input names: a file, a folder of DICOM slices, the CTs in a folder, or a list of all these.

    Args:
        source: As named; a list is a ``.txt`` file with a path a line, as it is or beside the list.

    Raises:
        UserError: It does not exist, or the folder holds no volume.
    """
    return _listed(source) if source.is_file() and source.suffix.lower() == ".txt" else _images_of(source)


def _listed(file: Path) -> list[Path]:
    lines = [line.strip() for line in read_any_text(file).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{file}: is empty; expected a path a line")
    return [image for line in lines for image in _images_of(file.parent / Path(line).expanduser())]


def _images_of(source: Path) -> list[Path]:
    try:
        if source.is_file() or is_series(source):
            return [source]
    except OSError:  # named when it is to be read, and the others are done
        return [source]
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected a CT or a folder of CTs")
    images = list_volumes(source)
    for message in unreadable_volumes(source):
        logger.warning("left out: %s", message)
    if not images:
        raise UserError(f"{source}: holds no CT; expected .nii.gz, .nii, .mha or .nrrd files, or DICOM folders")
    return images


def predicted_labels(folder: Path) -> LabelSet | None:
    """The organs of the label maps that :func:`predict_files` wrote to a folder; None where something else wrote them.

    Raises:
        UserError: The folder's record is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return LabelSet.from_dict(_read_record(path)["labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not name the labels ({error}); give labels=dataset.json") from None


def _claim_folder(output: Path, settings: dict[str, Any], targets: Mapping[Path, Path], replace: bool) -> None:
    """Record what makes the labels in a folder, so that labels of another making are never kept as finished.

    Which CT each label map is of is recorded too: the report shows them together.
    """
    settings = json.loads(json.dumps(settings))  # as it is read back
    with _writing(output):
        found = _read_record(output / RECORD) if (output / RECORD).exists() else {}
        labels = list(output.glob("[!.]*.nii.gz"))
        changed = [
            f"{key}: found {found.get(key)}, now {settings[key]}" for key in settings if found.get(key) != settings[key]
        ]
        if changed:
            _make_way(output, [path for path in labels if found or path in targets], changed if found else [], replace)
            found = {}
        known = found.get("images", {}) | {case_name(image): str(image.resolve()) for image in targets.values()}
        record = {**settings, "images": known, "warnings": found.get("warnings", {})}
        write_text(output / RECORD, json.dumps(record, indent=2))


def _make_way(output: Path, labels: Sequence[Path], changed: Sequence[str], replace: bool) -> None:
    """Delete labels of another making, or refuse to."""
    if labels and not replace:
        reason = f"made with different settings ({'; '.join(changed)})" if changed else "that something else made"
        raise UserError(
            f"{output}: contains predictions {reason}, such as {labels[0].name}; choose another output, or empty it"
        )
    for path in labels:
        path.unlink()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it together with the labels beside it") from None
