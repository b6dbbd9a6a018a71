"""The sliding window of nnU-Net v2: its tile positions, its Gaussian weights, its test-time flips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

Flips = Literal["none", "axes", "full"]

#: The sets of axes (of z, y, x) that are mirrored; the predictions are averaged.
FLIPPED_AXES: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "axes": ((), (0,), (1,), (2,)),
    "full": ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
}


@torch.inference_mode()
def predict_logits(
    network: nn.Module, volume: Tensor, patch_size: Sequence[int], step: float = 0.5, flips: Flips = "none"
) -> Tensor:
    """Segment a whole volume tile by tile.

    Args:
        network: Maps (1, 1, *patch_size) to logits (1, C, *patch_size); put into evaluation mode here.
        volume: (1, z, y, x), normalised. One smaller than the patch is padded with 0 on both sides.
        patch_size: (z, y, x).
        step: Distance between tiles as a part of the patch.
        flips: ``none``; ``axes``: the identity and three single-axis flips, averaged (DLUNet's "+tta"); ``full``: all
            eight (nnU-Net). Logits are averaged, as nnU-Net does.

    Returns:
        Logits (C, z, y, x), on the volume's device.

    Raises:
        ValueError: ``flips`` is none of the three.
    """
    if flips not in FLIPPED_AXES:
        raise ValueError(f"flips must be one of {', '.join(FLIPPED_AXES)}, not {flips!r}")
    was_training = network.training
    network.eval()
    padded, inside = _pad(volume, patch_size)
    weights = torch.from_numpy(gaussian_weights(tuple(patch_size))).to(volume.device)
    total: Tensor | None = None
    weight_sum = torch.zeros(padded.shape[1:], device=volume.device)
    for corner in product(*tile_starts(padded.shape[1:], patch_size, step)):
        tile = (slice(None), *(slice(start, start + size) for start, size in zip(corner, patch_size, strict=True)))
        logits = _flip_averaged(network, padded[tile][None], flips)[0].float()
        if total is None:
            total = torch.zeros((len(logits), *padded.shape[1:]), device=volume.device)
        total[tile] += logits * weights
        weight_sum[tile[1:]] += weights
    network.train(was_training)
    assert total is not None
    return (total / weight_sum)[(slice(None), *inside)]


def tile_starts(shape: Sequence[int], patch_size: Sequence[int], step: float) -> list[list[int]]:
    """The first voxel of the tiles along each axis: equal steps of at most ``step`` patches, rounded.

    A length of 110 with patches of 64 and a step of 0.5 gives 0, 23, 46.
    """
    starts = []
    for size, patch in zip(shape, patch_size, strict=True):
        count = math.ceil((size - patch) / (patch * step)) + 1
        distance = (size - patch) / (count - 1) if count > 1 else 0.0
        starts.append([round(distance * k) for k in range(count)])
    return starts


@lru_cache(maxsize=4)
def gaussian_weights(patch_size: tuple[int, ...]) -> np.ndarray:
    """The weight of each voxel of a tile, 1 in the middle: a Gaussian of sigma = patch / 8, never 0."""
    impulse = np.zeros(patch_size)
    impulse[tuple(size // 2 for size in patch_size)] = 1
    weights = ndimage.gaussian_filter(impulse, [size / 8 for size in patch_size], mode="constant")
    weights /= weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def _flip_averaged(network: nn.Module, tile: Tensor, flips: str) -> Tensor:
    variants = FLIPPED_AXES[flips]
    total: Tensor | None = None
    for axes in variants:
        dims = [axis + 2 for axis in axes]
        logits = network(tile.flip(dims)).flip(dims) if dims else network(tile)
        total = logits if total is None else total + logits
    assert total is not None
    return total / len(variants)


def _pad(volume: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad to the patch size where smaller, and tell where the volume lies in the result."""
    missing = [max(0, patch - size) for patch, size in zip(patch_size, volume.shape[1:], strict=True)]
    before = [m // 2 for m in missing]
    padding = [n for b, m in reversed(list(zip(before, missing, strict=True))) for n in (b, m - b)]
    inside = tuple(slice(b, b + size) for b, size in zip(before, volume.shape[1:], strict=True))
    return F.pad(volume, padding), inside
