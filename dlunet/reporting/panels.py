"""The paper's figure 3: slices of the best and worst cases, with reference and predicted labels."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dlunet.datasets import Case
from dlunet.errors import UserError
from dlunet.labels import FLARE22, LabelSet
from dlunet.reporting.figures import house_style, png
from dlunet.reporting.runs import Run
from dlunet.reporting.tables import best_and_worst, case_means
from dlunet.volumes import read_ct, read_labels

#: The usual abdominal window in Hounsfield units.
WINDOW_CENTER, WINDOW_WIDTH = 40, 400
#: Opacity of the class colours over the CT.
OPACITY = 0.6
#: Width of a legend entry and height of a legend line, in inches.
LEGEND_ENTRY, LEGEND_LINE = 1.8, 0.19


@dataclass(frozen=True)
class Panels:
    """The figure, or None, with the cases shown and notes on what is missing."""

    figure: Figure | None
    cases: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    """A slice of one case: the CT as grey values (y, x), label maps (y, x) by column title, and a caption."""

    caption: str
    grey: np.ndarray
    label_maps: dict[str, np.ndarray | None]
    aspect: float


def case_panels(
    groups: Mapping[str, Sequence[Run]], labels: LabelSet = FLARE22, chosen: Collection[str] | None = None
) -> Panels:
    """Draw cases, one row each and one column per experiment.

    If an experiment has several seeds, the first one with predictions is shown.

    Args:
        groups: Runs by experiment.
        labels: The classes.
        chosen: The names of the cases; None: those that the last experiment segments best and worst.
    """
    shown = {name: next((run for run in runs if run.predictions), None) for name, runs in groups.items()}
    notes = [f"{name}: no predictions to show" for name, run in shown.items() if run is None]
    runs = {name: run for name, run in shown.items() if run is not None}
    ranking = next((run for run in reversed(runs.values()) if run.scores is not None), None)
    if ranking is None or ranking.scores is None:
        return Panels(None, (), (*notes, "No run has both predictions and scores, so there is no best or worst case."))
    cases = ranking.cases
    means = case_means(ranking.scores)
    usable = means[[case in cases and case in ranking.predictions for case in means.index]]
    rows = []
    ranks = best_and_worst(list(map(str, usable.index)))
    for case in ranks if chosen is None else [case for case in usable.index[::-1] if case in chosen]:
        rank = f"{ranks[case]}, " if case in ranks else ""
        try:
            rows.append(_read_row(cases[case], f"{case}\n{rank}DSC {usable[case]:.3f}", runs, notes))
        except UserError as error:
            notes.append(f"{case}: not shown: {error}")
    if not rows:
        return Panels(None, (), (*notes, "No scored test case has its image, its reference and a prediction."))
    captions = tuple(f"{row.caption.replace(chr(10), ' (')})" for row in rows)
    return Panels(_draw(rows, ["image", "reference", *runs], labels), captions, tuple(notes))


def overlay_png(image: np.ndarray, labels: np.ndarray, spacing: Sequence[float], label_set: LabelSet) -> bytes:
    """A PNG of one case: the axial slice with the most classes, without and with its labels.

    Args:
        image: CT in HU (z, y, x), canonical.
        labels: Label map (z, y, x).
        spacing: Voxel size (z, y, x) in mm.
        label_set: The classes.
    """
    z = most_organs_slice(labels) if labels.any() else len(labels) // 2
    row = _Row(f"slice {z}", _grey(image[z]), {"labels": labels[z]}, spacing[1] / spacing[2])
    return png(_draw([row], ["image", "labels"], label_set, width=4.6))


def most_organs_slice(reference: np.ndarray) -> int:
    """The axial slice of a label map (z, y, x) with the most classes; among equals, the most foreground voxels."""
    organs = [len(np.unique(axial[axial > 0])) for axial in reference]
    voxels = np.count_nonzero(reference, axis=(1, 2))
    return int(np.lexsort((voxels, organs))[-1])


def _read_row(case: Case, caption: str, runs: Mapping[str, Run], notes: list[str]) -> _Row:
    assert case.label is not None
    image, reference = read_ct(case.image), read_labels(case.label)
    z = most_organs_slice(reference.array)
    label_maps: dict[str, np.ndarray | None] = {"reference": reference.array[z]}
    for name, run in runs.items():
        try:
            prediction = read_labels(run.predictions[case.name]).array if case.name in run.predictions else None
        except UserError as error:
            notes.append(f"{name}: {error}")
            prediction = None
        if prediction is not None and prediction.shape != reference.array.shape:
            notes.append(f"{name}: {run.predictions[case.name]} is not on the grid of the CT")
            prediction = None
        label_maps[name] = None if prediction is None else prediction[z]
    return _Row(caption, _grey(image.array[z]), label_maps, image.spacing[1] / image.spacing[2])


def _grey(slice_: np.ndarray) -> np.ndarray:
    """HU in the abdominal window, scaled to 0 … 1."""
    return np.clip((slice_ - (WINDOW_CENTER - WINDOW_WIDTH / 2)) / WINDOW_WIDTH, 0, 1)


def _draw(rows: Sequence[_Row], columns: Sequence[str], labels: LabelSet, width: float = 2.3) -> Figure:
    """Draw one row per case and one column, ``width`` inches wide, per image or label map."""
    heights = [row.grey.shape[0] * row.aspect / row.grey.shape[1] for row in rows]
    entries_a_line = min(5, int(width * len(columns) / LEGEND_ENTRY))
    around = 0.5 + LEGEND_LINE * math.ceil(len(labels) / entries_a_line)
    with house_style():
        figure = Figure(figsize=(width * len(columns) + 0.6, width * sum(heights) + around), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
        for row, line in zip(rows, grid, strict=True):
            for axes, column in zip(line, columns, strict=True):
                label_map = row.label_maps.get(column)
                if column != "image" and label_map is None:
                    axes.text(0.5, 0.5, "no prediction", ha="center", va="center", transform=axes.transAxes)
                    axes.set_box_aspect(row.grey.shape[0] * row.aspect / row.grey.shape[1])
                else:
                    # Canonical arrays are in radiological view: the patient's right is on the left, anterior on top.
                    axes.imshow(_overlay(row.grey, label_map, labels), aspect=row.aspect, interpolation="nearest")
                _strip(axes)
            line[0].set_ylabel(row.caption)
        for axes, column in zip(grid[0], columns, strict=True):
            axes.set_title(column, fontsize=10)
        handles = [Patch(color=label.color, label=f"{label.name} ({label.abbreviation})") for label in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=entries_a_line, fontsize=8)
    return figure


def _overlay(grey: np.ndarray, label_map: np.ndarray | None, labels: LabelSet) -> np.ndarray:
    """A grey slice (y, x) overlaid with the class colours, as RGB (y, x, 3)."""
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    for label in labels if label_map is not None else ():
        organ = label_map == label.id
        rgb[organ] = (1 - OPACITY) * rgb[organ] + OPACITY * np.array(to_rgb(label.color))
    return rgb


def _strip(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
