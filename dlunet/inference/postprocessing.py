"""Optional postprocessing of label maps, laterality check and class volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from dlunet.errors import UserError
from dlunet.labels import LabelSet, words_of
from dlunet.volumes import count_labels


def keep_largest_components(labels: np.ndarray) -> np.ndarray:
    """Keep the largest connected component of each class (face connectivity); the rest becomes background.

    Args:
        labels: (z, y, x), uint8.
    """
    result = labels.copy()
    for value, box in _organs(labels):
        parts, count = ndimage.label(labels[box] == value)
        if count > 1:
            sizes = count_labels(parts, count + 1)
            result[box][(parts > 0) & (parts != 1 + sizes[1:].argmax())] = 0
    return result


def fill_holes(labels: np.ndarray) -> np.ndarray:
    """Fill the holes of each class: background that it encloses completely.

    Args:
        labels: (z, y, x), uint8.
    """
    result = labels.copy()
    for value, box in _organs(labels):
        filled = ndimage.binary_fill_holes(labels[box] == value)
        result[box][filled & (labels[box] == 0)] = value
    return result


#: The steps that ``postprocess`` accepts, in the order of execution.
STEPS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"largest": keep_largest_components, "holes": fill_holes}


def checked_steps(steps: Iterable[object] | None) -> tuple[str, ...]:
    """The named steps of :data:`STEPS` in the order of execution.

    Raises:
        UserError: There is no step of a name.
    """
    found = [None] if steps is None else list(steps)
    if not all(step in STEPS for step in found):
        shown = ", ".join(str(step) for step in found)
        raise UserError(
            f"postprocess: found {shown}; expected some of {', '.join(STEPS)}, such as 'postprocess=[largest]', or []"
        )
    return tuple(name for name in STEPS if name in found)


def postprocess(labels: np.ndarray, steps: Sequence[str]) -> np.ndarray:
    """Apply the named steps of :data:`STEPS`."""
    for name, step in STEPS.items():
        if name in steps:
            labels = step(labels)
    return labels


def swapped_sides(labels: np.ndarray, label_set: LabelSet) -> list[str]:
    """One message per pair of structures, named right and left, whose sides are swapped in the patient.

    Args:
        labels: (z, y, x) in canonical orientation: x increases to the patient's left.
        label_set: The classes.
    """
    by_name = {words_of(label.name): label for label in label_set}
    centres = {value: _centre(labels, value, box) for value, box in _organs(labels)}
    messages = []
    for words, right in by_name.items():
        left = by_name.get((words - {"right"}) | {"left"}) if "right" in words else None
        if left and {right.id, left.id} <= set(centres) and centres[right.id] > centres[left.id]:
            messages.append(
                f"{right.name} lies to the patient's left of {left.name}: check the orientation; the usual cause is a "
                "mirrored header, rarely situs inversus"
            )
    return messages


def organ_volumes(labels: np.ndarray, spacing: Sequence[float], label_set: LabelSet) -> dict[str, float]:
    """The volume of each class in ml.

    Args:
        labels: (z, y, x), uint8.
        spacing: Voxel size (z, y, x) in mm.
        label_set: The classes.
    """
    voxels = count_labels(labels, label_set.num_classes)
    return {label.name: float(voxels[label.id] * np.prod(spacing) / 1000) for label in label_set}


def _organs(labels: np.ndarray) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """The foreground classes in a label map, each with its bounding box."""
    for value, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            yield value, box


def _centre(labels: np.ndarray, value: int, box: tuple[slice, ...]) -> float:
    """The mean x of a class."""
    along_x = (labels[box] == value).sum((0, 1))
    return float(box[2].start + along_x @ np.arange(len(along_x)) / along_x.sum())
