"""What the labelled cases look like: the statistics that the plan is made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.files import file_stamp, write_text
from dlunet.preparation.plan import Intensity
from dlunet.volumes import Geometry, Volume, read_ct, read_labels

#: Foreground voxels taken from a case at most; more do not move the percentiles.
VOXELS_A_CASE = 200_000


def foreground_intensity(cases: Sequence[Case], cache: Path) -> Intensity:
    """The intensity statistics over the foreground of labelled cases (nnU-Net's fingerprint).

    Args:
        cases: Cases with labels; one that cannot be read is left out.
        cache: A JSON file in which the result is kept for as long as the cases' files do not change.

    Raises:
        UserError: No case can be read, or none shows an organ.
    """
    stamps = {case.name: file_stamp(case.image, case.label) for case in cases}
    kept = _read_cache(cache)
    if kept.get("cases") == stamps:
        return Intensity(**kept["intensity"])
    samples, failures = [], []
    for case in cases:
        try:
            samples.append(_foreground_values(case))
        except UserError as error:
            failures.append(str(error))
    if not samples:
        raise UserError(f"none of the {len(cases)} labelled cases can be read; the first: {failures[0]}")
    values = np.concatenate(samples)
    if not values.size:
        raise UserError(f"none of the {len(cases)} labelled cases shows an organ; expected labels above 0")
    lower, upper = np.percentile(values, [0.5, 99.5])
    intensity = Intensity(float(lower), float(upper), float(values.mean()), float(max(values.std(), 1e-6)))
    write_text(cache, json.dumps({"intensity": asdict(intensity), "cases": stamps}, indent=2))
    return intensity


def read_labelled(case: Case, num_classes: int) -> tuple[Volume, Volume]:
    """Read a CT and its labels, which must share one grid.

    Raises:
        UserError: One of them cannot be read, or the grids differ.
    """
    assert case.label is not None
    image, label = read_ct(case.image), read_labels(case.label, num_classes)
    if not image.stored.same_grid(label.stored):
        raise UserError(
            f"{case.label}: lies on another grid than {case.image}: found {_grid(label.stored)}, "
            f"expected {_grid(image.stored)}; resample the labels to the CT"
        )
    return image, label


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}  # it is made anew


def _foreground_values(case: Case) -> np.ndarray:
    image, label = read_labelled(case, num_classes=256)
    values = image.array[label.array > 0]
    step = -(-len(values) // VOXELS_A_CASE) or 1
    return values[::step]


def _grid(geometry: Geometry) -> str:
    spacing = "×".join(f"{mm:.3g}" for mm in geometry.spacing)
    return f"{'×'.join(map(str, geometry.size))} voxels of {spacing} mm, {geometry.orientation}"
