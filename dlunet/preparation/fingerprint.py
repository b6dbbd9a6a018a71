"""The fingerprint: statistics of the labelled cases, from which the plan is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from dlunet import stamps
from dlunet.datasets import Case, read_case
from dlunet.errors import UserError
from dlunet.files import remove_leftovers, write_text
from dlunet.locks import alone
from dlunet.parallel import for_each_case
from dlunet.preparation.plan import Intensity
from dlunet.volumes import count_labels

#: Maximum number of foreground voxels sampled per case; more do not change the percentiles.
VOXELS_A_CASE = 200_000


@dataclass(frozen=True)
class CaseFacts:
    """Properties of one case.

    Attributes:
        shape: Voxels (z, y, x) in canonical orientation.
        spacing: Voxel size (z, y, x) in mm.
        orientation: Three letters for the directions in which the file's x, y and z increase, such as ``LPS``.
        hu_range: Smallest and largest HU.
        voxels: Number of voxels of each label that the case contains; None for an unlabelled case.
        foreground: HU of labelled voxels, float32, at most :data:`VOXELS_A_CASE` of them.
        digest: Hash of the CT's voxels, independent of its name.
        warnings: What looks wrong in the CT's file, see :class:`dlunet.volumes.Volume`.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    orientation: str
    hu_range: tuple[float, float]
    voxels: dict[int, int] | None
    foreground: np.ndarray
    digest: bytes
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Fingerprint:
    """Properties of all labelled cases: shape and spacing (z, y, x) per case, and statistics of the foreground's HU."""

    shapes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float], ...]
    intensity: Intensity


def read_facts(case: Case, num_classes: int) -> CaseFacts:
    """Read a case and determine its properties.

    Raises:
        UserError: It is not fit for training, see :func:`dlunet.datasets.read_case`.
    """
    image, label = read_case(case, num_classes)
    z, y, x = image.array.shape
    values, voxels = np.empty(0, np.float32), None
    if label is not None:
        counts = count_labels(label.array, num_classes)
        voxels = {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value > 0}
        values = image.array[label.array > 0]
        # A copy: a view would keep every labelled voxel of every case in memory.
        values = values[:: -(-len(values) // VOXELS_A_CASE) or 1].copy()
    hu_range = float(image.array.min()), float(image.array.max())
    digest = blake2b(np.ascontiguousarray(image.array).data, digest_size=16).digest()
    return CaseFacts(
        (z, y, x), image.spacing, image.stored.orientation, hu_range, voxels, values, digest, image.warnings
    )


def take_fingerprint(cases: Sequence[Case], num_classes: int, cache: Path, workers: int | None = None) -> Fingerprint:
    """The statistics of labelled cases (nnU-Net's fingerprint).

    Args:
        cases: Cases with labels; one that is not fit for training is skipped.
        num_classes: Labels are in 0 … num_classes − 1.
        cache: A JSON file that caches the result until the cases' files change.
        workers: Processes; by default one per core.

    Raises:
        UserError: No case is fit, or none contains a class.
    """
    waiting = f"{cache.parent}: another job is reading the labelled cases; waiting for it"
    with alone(cache.with_name(f".{cache.name}.lock"), waiting):
        return _read_cache(cache, cases, num_classes) or _take_fingerprint(cases, num_classes, cache, workers)


def _take_fingerprint(cases: Sequence[Case], num_classes: int, cache: Path, workers: int | None) -> Fingerprint:
    remove_leftovers(cache.parent)
    read: dict[str, CaseFacts] = {}
    files: dict[str, stamps.Stamps] = {}
    failures = []
    read_one = partial(_stamp_and_read, num_classes=num_classes)
    for case, outcome in for_each_case("reading labelled cases", read_one, cases, workers):
        assert not isinstance(outcome, UserError)  # it would be without stamps
        files[case.name], facts_or_error = outcome
        if isinstance(facts_or_error, UserError):
            failures.append(str(facts_or_error))
        else:
            read[case.name] = facts_or_error
    if not read:
        raise UserError(f"none of the {len(cases)} labelled cases can be read; the first error: {failures[0]}")
    # In the order of the cases, not of reading, so that the mean is reproducible to the last digit.
    facts_in_order = [read[case.name] for case in cases if case.name in read]
    values = np.concatenate([facts.foreground for facts in facts_in_order])
    if not values.size:
        raise UserError(f"none of the {len(cases)} labelled cases has any label above 0; expected at least one class")
    lower, upper = np.percentile(values, [0.5, 99.5])
    result = Fingerprint(
        tuple(facts.shape for facts in facts_in_order),
        tuple(facts.spacing for facts in facts_in_order),
        Intensity(float(lower), float(upper), float(values.mean()), float(max(values.std(), 1e-6))),
    )
    write_text(
        cache,
        json.dumps(
            {**asdict(result), "num_classes": num_classes, "cases": {case.name: files[case.name] for case in cases}},
            indent=2,
        ),
    )
    return result


def _stamp_and_read(case: Case, num_classes: int) -> tuple[stamps.Stamps, CaseFacts | UserError]:
    """The stamps of a case that cannot be read count, too: it is read again when they change."""
    files = stamps.stamp_if_readable(case.sources)
    try:
        return files, read_facts(case, num_classes)
    except UserError as error:
        return files, error


def _read_cache(path: Path, cases: Sequence[Case], num_classes: int) -> Fingerprint | None:
    """The cached fingerprint of the same files and classes; if the files only moved, the cache is updated."""
    try:
        values = json.loads(path.read_text())
        followed = {case.name: stamps.follow(values["cases"].get(case.name), case.sources) for case in cases}
        if values.get("num_classes", num_classes) != num_classes:
            return None
        if None in followed.values() or followed.keys() != values["cases"].keys():
            return None
        shapes, spacings = (tuple(tuple(row) for row in values[key]) for key in ("shapes", "spacings"))
        found = Fingerprint(shapes, spacings, Intensity(**values["intensity"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # recomputed
    if followed != values["cases"]:
        with suppress(UserError):  # in a read-only folder, the files are read again next time
            write_text(path, json.dumps({**values, "cases": followed}, indent=2))
    return found
