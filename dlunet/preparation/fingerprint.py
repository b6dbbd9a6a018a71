"""What the labelled cases look like: the statistics that the plan is made from."""

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
from dlunet.files import write_text
from dlunet.parallel import for_each_case
from dlunet.preparation.plan import Intensity

#: Foreground voxels taken from a case at most; more do not move the percentiles.
VOXELS_A_CASE = 200_000


@dataclass(frozen=True)
class CaseFacts:
    """What one case is like.

    Attributes:
        shape: Voxels (z, y, x) in canonical orientation.
        spacing: Voxel size (z, y, x) in mm.
        orientation: Three letters for the directions in which the file's x, y and z grow, such as ``LPS``.
        hu_range: Smallest and largest HU.
        voxels: For each label that the case shows, its voxels; none for an unlabelled case.
        foreground: HU of voxels under labels, float32, at most :data:`VOXELS_A_CASE` of them.
        digest: The same for CTs of the same voxels, whatever their names.
        warnings: What is most likely not meant so of the CT's file, see :class:`dlunet.volumes.Volume`.
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
    """What the labelled cases together are like: shapes and spacings (z, y, x) a case, and the foreground's HU."""

    shapes: tuple[tuple[int, int, int], ...]
    spacings: tuple[tuple[float, float, float], ...]
    intensity: Intensity


def read_facts(case: Case, num_classes: int) -> CaseFacts:
    """Read a case and tell what it is like.

    Raises:
        UserError: It is not fit for training, see :func:`dlunet.datasets.read_case`.
    """
    image, label = read_case(case, num_classes)
    z, y, x = image.array.shape
    values, voxels = np.empty(0, np.float32), None
    if label is not None:
        # Slice by slice: the whole label map as the integers that are counted takes eight times its memory.
        counts = np.sum([np.bincount(axial.ravel(), minlength=num_classes) for axial in label.array], axis=0)
        voxels = {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value > 0}
        values = image.array[label.array > 0]
        values = values[:: -(-len(values) // VOXELS_A_CASE) or 1]
    hu_range = float(image.array.min()), float(image.array.max())
    digest = blake2b(np.ascontiguousarray(image.array).data, digest_size=16).digest()
    return CaseFacts(
        (z, y, x), image.spacing, image.stored.orientation, hu_range, voxels, values, digest, image.warnings
    )


def take_fingerprint(cases: Sequence[Case], num_classes: int, cache: Path, workers: int | None = None) -> Fingerprint:
    """The statistics of labelled cases (nnU-Net's fingerprint).

    Args:
        cases: Cases with labels; one that is not fit for training is left out.
        num_classes: Labels lie in 0 … num_classes − 1.
        cache: A JSON file in which the result is kept for as long as the cases' files do not change.
        workers: Processes; by default one a core.

    Raises:
        UserError: No case is fit, or none shows an organ.
    """
    kept = _read_cache(cache, cases)
    if kept is not None:
        return kept
    read: dict[str, CaseFacts] = {}
    files: dict[str, stamps.Stamps] = {}
    failures = []
    read_one = partial(_read_and_stamp, num_classes=num_classes)
    for case, outcome in for_each_case("reading labelled cases", read_one, cases, workers):
        if isinstance(outcome, UserError):
            failures.append(str(outcome))
            files[case.name] = _stamps(case)
        else:
            read[case.name], files[case.name] = outcome
    if not read:
        raise UserError(f"none of the {len(cases)} labelled cases can be read; the first error: {failures[0]}")
    # In the cases' own order, whichever was read first: the mean of the same voxels is the same to the last digit.
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
        cache, json.dumps({**asdict(result), "cases": {case.name: files[case.name] for case in cases}}, indent=2)
    )
    return result


def _read_and_stamp(case: Case, num_classes: int) -> tuple[CaseFacts, stamps.Stamps]:
    return read_facts(case, num_classes), _stamps(case)


def _sources(case: Case) -> list[Path]:
    return [path for path in (case.image, case.label) if path is not None]


def _stamps(case: Case) -> stamps.Stamps:
    try:
        return stamps.stamp(_sources(case))
    except OSError:  # a case that cannot be read is left out, with a message
        return []


def _read_cache(path: Path, cases: Sequence[Case]) -> Fingerprint | None:
    """What was found in the same files before; where they only lie elsewhere or have another time, that is noted."""
    try:
        values = json.loads(path.read_text())
        followed = {case.name: stamps.follow(values["cases"].get(case.name), _sources(case)) for case in cases}
        if None in followed.values() or followed.keys() != values["cases"].keys():
            return None
        shapes, spacings = (tuple(tuple(row) for row in values[key]) for key in ("shapes", "spacings"))
        found = Fingerprint(shapes, spacings, Intensity(**values["intensity"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # it is computed again
    if followed != values["cases"]:
        with suppress(UserError):  # in a folder that cannot be written the files are read again next time
            write_text(path, json.dumps({**values, "cases": followed}, indent=2))
    return found
