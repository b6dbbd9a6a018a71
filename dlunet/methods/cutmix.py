"""CutMix for volumes: pastes boxes of one patch into another (DLUNet, eq. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: The fraction of the patch that a box would cover before division among the boxes: s ~ U(low, high).
SIZE_RANGE = (0.25, 0.5)


def draw_box(shape: Sequence[int], num_boxes: int, generator: torch.Generator | None = None) -> tuple[slice, ...]:
    """Draw one box inside a patch, with the distribution of the published code.

    With s ~ U(0.25, 0.5) and a, b ~ U(0, 1), the edges are the fractions y = s^a, x = s^(1−a) and z = s^b of the patch,
    each times √(1/num_boxes), rounded; the position is uniform inside the patch.

    Args:
        shape: The patch (z, y, x).
        num_boxes: Number of boxes in the patch.
        generator: The random generator.

    Returns:
        Slices along z, y and x.
    """
    low, high = SIZE_RANGE
    s, a, b = torch.rand(3, generator=generator).tolist()
    s = low + (high - low) * s
    fractions = (s**b, s**a, s ** (1 - a))
    edges = [round(size * fraction * math.sqrt(1 / num_boxes)) for size, fraction in zip(shape, fractions, strict=True)]
    return place_box(shape, edges, generator)


def place_box(
    shape: Sequence[int], edges: Sequence[int], generator: torch.Generator | None = None
) -> tuple[slice, ...]:
    """Slices along z, y and x of a box with these edges at a uniformly random position in a patch."""
    starts = [
        int(torch.randint(0, size - edge + 1, (), generator=generator)) for size, edge in zip(shape, edges, strict=True)
    ]
    return tuple(slice(start, start + edge) for start, edge in zip(starts, edges, strict=True))


def draw_masks(
    batch: int,
    shape: Sequence[int],
    num_boxes: int = 3,
    generator: torch.Generator | None = None,
    probability: float = 1.0,
) -> Tensor:
    """Draw one mask (z, y, x) per sample: true inside the boxes; overlapping boxes toggle the mask.

    Args:
        batch: B, the number of samples.
        shape: The patch (z, y, x).
        num_boxes: Number of boxes in a patch.
        generator: The random generator.
        probability: That a sample has boxes.

    Returns:
        Booleans (B, z, y, x).
    """
    masks = torch.zeros((batch, *shape), dtype=torch.bool)
    for mask in masks:
        if probability < 1 and float(torch.rand((), generator=generator)) >= probability:
            continue
        for _ in range(num_boxes):
            mask[draw_box(shape, num_boxes, generator)] ^= True
    return masks


def cut_mix(outside: Tensor, inside: Tensor, masks: Tensor) -> Tensor:
    """Fill the boxes from ``inside`` and the rest from ``outside``.

    Args:
        outside: Images (B, C, z, y, x) or labels (B, z, y, x).
        inside: As ``outside``.
        masks: Booleans (B, z, y, x).
    """
    return torch.where(masks if outside.ndim == masks.ndim else masks[:, None], inside, outside)
