"""Metrics for a single structure: their names, their directions and the registry for further ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from dlunet.errors import UserError
from dlunet.evaluation.surfaces import surface_distances
from dlunet.files import write_text
from dlunet.plugins import is_another
from dlunet.run_layout import ScoresLayout

#: ``function(prediction, reference, spacing)`` compares two masks (z, y, x), neither of them empty; spacing in mm.
Measure = Callable[[np.ndarray, np.ndarray, Sequence[float]], float]
AnyMeasure = TypeVar("AnyMeasure", bound=Measure)


@dataclass(frozen=True)
class Metric:
    """A metric and its direction.

    Attributes:
        title: Its name in tables, with its unit.
        higher_is_better: Its direction; false for distances.
        measure: Function that compares two masks; None for DSC and NSD, which follow FLARE22's rules
            (:func:`score_case`).
    """

    title: str
    higher_is_better: bool = True
    measure: Measure | None = None


#: DSC and NSD are in every table.
ALWAYS = {"dsc": Metric("DSC"), "nsd": Metric("NSD")}

#: Further metrics, by the names that ``dlunet evaluate metrics=[…]`` accepts.
METRICS: dict[str, Metric] = {}


def register_metric(title: str, higher_is_better: bool) -> Callable[[AnyMeasure], AnyMeasure]:
    """Decorator that registers a function as a metric, computed by ``dlunet evaluate metrics=[NAME]``.

    Where a structure is missing from one or both maps, the metric has no value and means exclude the case.

    Args:
        title: Its name in tables, with its unit.
        higher_is_better: Its direction; false for distances.
    """

    def register(measure: AnyMeasure) -> AnyMeasure:
        name = measure.__name__
        known = METRICS.get(name)
        if name in ALWAYS or (known is not None and is_another(known.measure, measure)):
            raise ValueError(f"there is already a metric {name}; choose another name")
        METRICS[name] = Metric(title, higher_is_better, measure)
        return measure

    return register


@register_metric("HD95 [mm]", higher_is_better=False)
def hd95(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """The larger of the two 95th percentiles of the surface-to-surface distances in mm, by area (Nikolov et al.)."""
    found = surface_distances(prediction, reference, spacing)
    return max(
        _percentile95(found.predicted, found.predicted_areas), _percentile95(found.expected, found.expected_areas)
    )


@register_metric("ASD [mm]", higher_is_better=False)
def asd(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """The average surface distance in mm: the mean over the area of both surfaces of the distance to the other one."""
    found = surface_distances(prediction, reference, spacing)
    total = found.predicted @ found.predicted_areas + found.expected @ found.expected_areas
    return float(total / (found.predicted_areas.sum() + found.expected_areas.sum()))


@register_metric("Volume difference [%]", higher_is_better=False)
def volume_difference(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """The absolute difference of both volumes in per cent of the reference's."""
    expected = np.count_nonzero(reference)
    return 100 * abs(np.count_nonzero(prediction) - expected) / expected


def _percentile95(distances: np.ndarray, areas: np.ndarray) -> float:
    """The smallest distance that 95 % of the area do not exceed."""
    order = np.argsort(distances)
    shares = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][np.searchsorted(shares[:-1], 0.95)])


def find_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """The metrics with these names.

    Raises:
        UserError: A metric is unknown.
    """
    names = [names] if isinstance(names, str) else names
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise UserError(
            f"metrics: found {unknown[0]}; expected one or more of {', '.join(METRICS)}; if it is a plug-in, add "
            "--config-dir=FOLDER"
        )
    return {name: METRICS[name] for name in names}


def write_metrics(metrics: Mapping[str, Metric], folder: Path) -> None:
    """Write a description of the score columns beside the scores."""
    described = {name: [metric.title, metric.higher_is_better] for name, metric in metrics.items()}
    write_text(ScoresLayout(folder).metrics, json.dumps(described, indent=2))


def read_metrics(folder: Path) -> dict[str, Metric]:
    """The metrics of the scores in a folder; DSC and NSD if not recorded, as in folders of earlier versions.

    Raises:
        OSError, ValueError, TypeError, AttributeError: The file that records them is damaged.
    """
    file = ScoresLayout(folder).metrics
    if not file.exists():
        return ALWAYS
    written = json.loads(file.read_text(encoding="utf-8"))
    return {name: Metric(str(title), bool(higher)) for name, (title, higher) in written.items()}
