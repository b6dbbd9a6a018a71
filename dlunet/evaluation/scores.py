"""DSC and NSD of one case, by the rules of FLARE22's official evaluation.

Sources: the evaluation script of the FLARE22 challenge (rules, tolerances); Nikolov et al., "Deep learning to achieve
clinically applicable segmentation of head and neck anatomy for radiotherapy" (surface DSC), in the authors' reference
implementation, the ``surface-distance`` package.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dlunet.errors import UserError
from dlunet.evaluation.metrics import Measure
from dlunet.evaluation.surfaces import surface_distances
from dlunet.labels import FLARE22, Label, LabelSet

#: Below this DSC a class counts as missed and its NSD is 0.
MISSED_BELOW_DSC = 0.2
#: Number of decimals to which the scores of each case are rounded.
DECIMALS = 4

Box = tuple[slice, ...]


class OrganScore(NamedTuple):
    """The scores of one class in one case.

    Attributes:
        organ: The name of the class in the label set.
        dsc: Dice similarity coefficient, 0 … 1.
        nsd: Normalised surface dice at the tolerance of the class, 0 … 1; NaN for a class without a tolerance.
    """

    organ: str
    dsc: float
    nsd: float


def dice_score(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float] | None = None) -> float:
    """Dice similarity coefficient of two masks: twice the overlap divided by the sum of both volumes.

    Args:
        prediction: Mask (z, y, x), boolean or 0/1.
        reference: Mask of the same shape.
        spacing: Voxel size (z, y, x) in mm. It has no effect, because all voxels are equally large; it gives all
            measures the same signature.

    Returns:
        A value in 0 … 1; 1 where both masks are empty, 0 where exactly one is.

    Raises:
        ValueError: The shapes differ.
    """
    prediction, reference = _masks(prediction, reference)
    volume = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / volume) if volume else 1.0


def surface_dice(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Normalised surface dice: the fraction of both surfaces within a tolerance of the other one.

    Surface elements are weighted by their area (Nikolov et al.), so the result does not depend on how finely the
    surface is sampled.

    Args:
        prediction: Mask (z, y, x), boolean or 0/1.
        reference: Mask of the same shape.
        spacing: Voxel size (z, y, x) in mm.
        tolerance_mm: Largest accepted distance in mm, inclusive.

    Returns:
        A value in 0 … 1; 1 where both masks are empty, 0 where exactly one is.

    Raises:
        ValueError: The shapes differ, the masks are not 3-D, or the spacing is not three positive numbers.
    """
    prediction, reference = _masks(prediction, reference)
    if prediction.ndim != 3 or len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(
            f"found masks of shape {prediction.shape} and spacing {tuple(spacing)}; "
            "expected 3-D masks (z, y, x) and three positive sizes in mm"
        )
    if not prediction.any() or not reference.any():
        return float(prediction.any() == reference.any())
    box = _bounding_box(prediction | reference)
    found = surface_distances(prediction[box], reference[box], spacing, tolerance_mm)
    within = found.predicted_areas[found.predicted <= tolerance_mm].sum()
    within += found.expected_areas[found.expected <= tolerance_mm].sum()
    return float(within / (found.predicted_areas.sum() + found.expected_areas.sum()))


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: LabelSet = FLARE22,
    slices_descend: bool = False,
) -> list[OrganScore]:
    """Score every class of one case by FLARE22's rules.

    - A class in neither map scores DSC 1 and NSD 1; in exactly one of them, 0 and 0.
    - A tubular structure is scored only on the z range of the reference, ``[z_min, z_max)``: the official script
      excludes the last slice, in the order stored in the file.
    - A DSC below 0.2 sets the NSD to 0.
    - Scores are rounded to 4 decimals.

    Args:
        prediction: Label map (z, y, x) of integers; 0 is background.
        reference: Label map of the same shape.
        spacing: Voxel size (z, y, x) in mm.
        labels: The classes, with their tolerances in mm.
        slices_descend: Whether the file stores its slices against the array's z axis. For canonical arrays, whose z
            axis points superior, this is a file whose first slice is the topmost.

    Returns:
        One score per class, in the order of the label set.

    Raises:
        ValueError: The shapes differ.
    """
    prediction, reference = _in_stored_order(prediction, reference, slices_descend)
    scores = []
    for label, predicted, expected in _boxes_by_organ(prediction, reference, labels):
        dsc, nsd = _score_organ(label, prediction, reference, predicted, expected, spacing)
        scores.append(OrganScore(label.name, round(dsc, DECIMALS), round(nsd, DECIMALS)))
    return scores


def measure_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    measures: Sequence[Measure],
    labels: LabelSet = FLARE22,
    slices_descend: bool = False,
) -> list[tuple[float, ...]]:
    """Further metrics of every class of one case, on the slices that FLARE22 scores.

    Args:
        prediction, reference, spacing, labels, slices_descend: As for :func:`score_case`.
        measures: The functions of the metrics.

    Returns:
        For each class one value per metric, rounded to 4 decimals; NaN where either map lacks the class.

    Raises:
        ValueError: The shapes differ.
    """
    prediction, reference = _in_stored_order(prediction, reference, slices_descend)
    values = []
    for label, predicted, expected in _boxes_by_organ(prediction, reference, labels):
        masks = None
        if predicted is not None and expected is not None:
            masks = _common_masks(label, prediction, reference, predicted, expected)
        if masks is None or not all(mask.any() for mask in masks):
            values.append((math.nan,) * len(measures))
        else:
            values.append(tuple(_value_of(measure, label, masks, spacing) for measure in measures))
    return values


def _value_of(measure: Measure, label: Label, masks: tuple[np.ndarray, np.ndarray], spacing: Sequence[float]) -> float:
    try:
        return round(float(measure(*masks, spacing)), DECIMALS)
    except Exception as error:  # a metric may be a plug-in, and fail in any way
        name = getattr(measure, "__name__", measure)
        raise UserError(
            f"metrics: {name} failed for {label.name} ({type(error).__name__}: {error}); expected a number"
        ) from error


def _in_stored_order(
    prediction: np.ndarray, reference: np.ndarray, slices_descend: bool
) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != reference.shape:
        raise ValueError(f"found a prediction of shape {prediction.shape}; expected the reference's {reference.shape}")
    return (prediction[::-1], reference[::-1]) if slices_descend else (prediction, reference)


def _boxes_by_organ(
    prediction: np.ndarray, reference: np.ndarray, labels: LabelSet
) -> Iterator[tuple[Label, Box | None, Box | None]]:
    """Each class with its bounding boxes in prediction and reference."""
    return zip(labels, _organ_boxes(prediction, labels), _organ_boxes(reference, labels), strict=True)


def _common_masks(
    label: Label, prediction: np.ndarray, reference: np.ndarray, predicted: Box, expected: Box
) -> tuple[np.ndarray, np.ndarray]:
    """Both masks of a class, cropped to their common bounding box and, if tubular, to the scored slices."""
    box = tuple(slice(min(p.start, e.start), max(p.stop, e.stop)) for p, e in zip(predicted, expected, strict=True))
    if label.tubular:
        box = (_scored_slices(expected[0]), *box[1:])
    return prediction[box] == label.id, reference[box] == label.id


def _score_organ(
    label: Label,
    prediction: np.ndarray,
    reference: np.ndarray,
    predicted: Box | None,
    expected: Box | None,
    spacing: Sequence[float],
) -> tuple[float, float]:
    """DSC and NSD of one class, given its bounding boxes in prediction and reference (None where it is absent)."""
    if predicted is None or expected is None:
        both = float(predicted is expected)
        return both, math.nan if label.nsd_tolerance_mm is None else both
    prediction_mask, reference_mask = _common_masks(label, prediction, reference, predicted, expected)
    dsc = dice_score(prediction_mask, reference_mask)
    if label.nsd_tolerance_mm is None:
        return dsc, math.nan
    if dsc < MISSED_BELOW_DSC:
        return dsc, 0.0
    return dsc, surface_dice(prediction_mask, reference_mask, spacing, label.nsd_tolerance_mm)


def _scored_slices(extent: slice) -> slice:
    """All slices of the reference except the last; a single slice is kept, as nothing would remain."""
    return slice(extent.start, max(extent.stop - 1, extent.start + 1))


def _organ_boxes(label_map: np.ndarray, labels: LabelSet) -> list[Box | None]:
    """The bounding box of each class, or None where it is absent; one pass over the foreground finds them all."""
    z = _extent(label_map, across=(1, 2))
    in_plane = label_map[z].max(axis=0, initial=0)
    around = z, _extent(in_plane, across=1), _extent(in_plane, across=0)
    found: list[Box | None] = ndimage.find_objects(label_map[around].astype(np.int32), max_label=len(labels))
    return [box and tuple(map(_shifted, box, around)) for box in found]


def _extent(label_map: np.ndarray, across: int | tuple[int, ...]) -> slice:
    """The extent of the foreground along the axis that is left; empty without any."""
    inside = np.flatnonzero(label_map.any(axis=across))
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)


def _shifted(part: slice, whole: slice) -> slice:
    """A part of a slice, counted from the beginning of what the slice is taken from."""
    return slice(part.start + whole.start, part.stop + whole.start)


def _bounding_box(mask: np.ndarray) -> Box:
    box: Box = ndimage.find_objects(mask.view(np.uint8), max_label=1)[0]
    return box


def _masks(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != reference.shape:
        raise ValueError(f"found a prediction of shape {prediction.shape}; expected the reference's {reference.shape}")
    return np.asarray(prediction, dtype=bool), np.asarray(reference, dtype=bool)
