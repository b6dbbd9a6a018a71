"""The paper's figure 3: slices of the best and worst cases, with reference and predicted labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dlunet.labels import LabelSet
from dlunet.reporting.figures import house_style, png
from dlunet.reporting.shown_cases import ShownCase
from dlunet.volumes.slices import grey, most_organs_slice, overlay

#: Width of a legend entry and height of a legend line, in inches.
LEGEND_ENTRY, LEGEND_LINE = 1.8, 0.19


@dataclass(frozen=True)
class PanelRow:
    """A slice of one case.

    Attributes:
        caption: What is said of it.
        grey: The CT as grey values (y, x).
        label_maps: A label map (y, x) for each column of label maps, or None.
        aspect: The height of a voxel as a multiple of its width.
    """

    caption: str
    grey: np.ndarray
    label_maps: Sequence[np.ndarray | None]
    aspect: float


def panel_row(case: ShownCase) -> PanelRow:
    """The axial slice of a case with the most classes in the reference: the reference, then each prediction."""
    assert case.reference is not None
    z = most_organs_slice(case.reference)
    maps = [case.reference, *case.predictions.values()]
    # Copied: a view would keep the whole label map in memory.
    slices = [None if array is None else array[z].copy() for array in maps]
    return PanelRow(f"{case.name}\n{case.remark}", grey(case.image[z]), slices, case.spacing[1] / case.spacing[2])


def overlay_png(image: np.ndarray, labels: np.ndarray, spacing: Sequence[float], label_set: LabelSet) -> bytes:
    """A PNG of one case: the axial slice with the most classes, without and with its labels.

    Args:
        image: CT in HU (z, y, x), canonical.
        labels: Label map (z, y, x).
        spacing: Voxel size (z, y, x) in mm.
        label_set: The classes.
    """
    z = most_organs_slice(labels)
    row = PanelRow(f"slice {z}", grey(image[z]), [labels[z]], spacing[1] / spacing[2])
    return png(draw_panels([row], ["labels"], label_set, width=4.6))


def draw_panels(rows: Sequence[PanelRow], titles: Sequence[str], labels: LabelSet, width: float = 2.3) -> Figure:
    """Draw cases, one row each: the image, then the image under each label map.

    Args:
        rows: The cases, at least one.
        titles: The titles of the columns of label maps.
        labels: The classes.
        width: Of a column, in inches.
    """
    columns = ["image", *titles]
    heights = [row.grey.shape[0] * row.aspect / row.grey.shape[1] for row in rows]
    entries_a_line = min(5, int(width * len(columns) / LEGEND_ENTRY))
    around = 0.5 + LEGEND_LINE * math.ceil(len(labels) / entries_a_line)
    with house_style():
        figure = Figure(figsize=(width * len(columns) + 0.6, width * sum(heights) + around), layout="constrained")
        grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
        for row, line in zip(rows, grid, strict=True):
            _show(line[0], overlay(row.grey, None, labels), row.aspect)
            for axes, label_map in zip(line[1:], row.label_maps, strict=True):
                if label_map is None:
                    axes.text(0.5, 0.5, "no prediction", ha="center", va="center", transform=axes.transAxes)
                    axes.set_box_aspect(row.grey.shape[0] * row.aspect / row.grey.shape[1])
                else:
                    _show(axes, overlay(row.grey, label_map, labels), row.aspect)
            for axes in line:
                _strip(axes)
            line[0].set_ylabel(row.caption)
        for axes, column in zip(grid[0], columns, strict=True):
            axes.set_title(column, fontsize=10)
        handles = [Patch(color=label.color, label=f"{label.name} ({label.abbreviation})") for label in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=entries_a_line, fontsize=8)
    return figure


def _show(axes: Axes, picture: np.ndarray, aspect: float) -> None:
    # Canonical arrays are in radiological view: the patient's right is on the left, anterior on top.
    axes.imshow(picture, aspect=aspect, interpolation="nearest")


def _strip(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
