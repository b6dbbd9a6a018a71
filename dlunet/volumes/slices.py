"""Axial slices as pictures: the slice with the most classes, grey values of a CT, and class colours over them."""

from __future__ import annotations

import numpy as np

from dlunet.labels import LabelSet

#: The usual abdominal window in Hounsfield units.
WINDOW_CENTER, WINDOW_WIDTH = 40, 400
#: Opacity of the class colours over the CT.
OPACITY = 0.6


def most_organs_slice(label_map: np.ndarray) -> int:
    """The axial slice of a label map (z, y, x) with the most classes; among equals, the most foreground voxels.

    In a label map without any class, the middle one.
    """
    if not label_map.any():
        return len(label_map) // 2
    organs = [len(np.unique(axial[axial > 0])) for axial in label_map]
    voxels = np.count_nonzero(label_map, axis=(1, 2))
    return int(np.lexsort((voxels, organs))[-1])


def grey(slice_: np.ndarray) -> np.ndarray:
    """HU (y, x) in the abdominal window, scaled to 0 … 1."""
    return np.clip((slice_ - (WINDOW_CENTER - WINDOW_WIDTH / 2)) / WINDOW_WIDTH, 0, 1)


def overlay(grey_slice: np.ndarray, label_map: np.ndarray | None, labels: LabelSet) -> np.ndarray:
    """A grey slice (y, x) of 0 … 1 with the colours of a label map (y, x) over it, if there is one: RGB (y, x, 3)."""
    rgb = np.repeat(grey_slice[..., None], 3, axis=-1)
    for label in labels if label_map is not None else ():
        organ = label_map == label.id
        rgb[organ] = (1 - OPACITY) * rgb[organ] + OPACITY * _rgb(label.color)
    return rgb


def _rgb(color: str) -> np.ndarray:
    """``#rrggbb`` as three values 0 … 1."""
    return np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
