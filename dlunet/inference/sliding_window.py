"""The sliding window of nnU-Net v2: tile positions, Gaussian weights and test-time flips."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise, product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

Flips = Literal["none", "axes", "full"]

#: Maps tiles (n, 1, z, y, x) to logits (n, C, z, y, x): a PyTorch module or an engine.
Network = Callable[[Tensor], Tensor]

#: The sets of axes (of z, y, x) that are flipped; the predictions are averaged.
FLIPPED_AXES: dict[str, tuple[tuple[int, ...], ...]] = {
    "none": ((),),
    "axes": ((), (0,), (1,), (2,)),
    "full": ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)),
}


@torch.inference_mode()
def predict_logits(
    network: Network, volume: Tensor, patch_size: Sequence[int], tile_step: float = 0.5, flips: Flips = "none"
) -> Tensor:
    """Segment a volume tile by tile. Keeps all logits in memory; use :func:`stream_logits` for large volumes.

    Args:
        network: Maps (1, 1, *patch_size) to logits (1, C, *patch_size); a module is switched to evaluation mode here.
        volume: (1, z, y, x), normalised. If smaller than the patch, it is padded with 0 on both sides.
        patch_size: (z, y, x).
        tile_step: Distance between tiles as a fraction of the patch.
        flips: ``none``; ``axes``: the identity and three single-axis flips, averaged (DLUNet's "+tta"); ``full``: all
            eight (nnU-Net). Logits are averaged, as nnU-Net does.

    Returns:
        Logits (C, z, y, x), on the volume's device.

    Raises:
        ValueError: ``flips`` is none of the three.
    """
    whole: Tensor | None = None
    begin = 0
    for slab in stream_logits(network, volume, patch_size, tile_step, flips):
        if whole is None:
            whole = slab.new_empty((len(slab), *volume.shape[1:]))
        whole[:, begin : begin + slab.shape[1]] = slab
        begin += slab.shape[1]
    assert whole is not None
    return whole


@torch.inference_mode()
def stream_logits(
    network: Network,
    volume: Tensor,
    patch_size: Sequence[int],
    tile_step: float = 0.5,
    flips: Flips = "none",
    tiles_at_once: int = 1,
) -> Iterator[Tensor]:
    """Segment a volume from its first slice to its last, keeping only the slab that is still being summed.

    Args:
        network: See :func:`predict_logits`, also for the other arguments.
        volume: (1, z, y, x), normalised.
        patch_size: (z, y, x).
        tile_step: Distance between tiles as a fraction of the patch.
        flips: Test-time flips.
        tiles_at_once: Number of tiles, flipped or not, per call of the network.

    Yields:
        Logits (C, n, y, x) of the next n slices, on the volume's device. They are overwritten when the next slab is
        requested.

    Raises:
        ValueError: ``flips`` is none of the three.
    """
    if flips not in FLIPPED_AXES:
        raise ValueError(f"flips must be one of {', '.join(FLIPPED_AXES)}, not {flips!r}")
    padded, inside = _pad(volume, patch_size)
    _, depth, height, width = padded.shape
    starts_z, *starts_yx = tile_starts((depth, height, width), patch_size, tile_step)
    weights = torch.from_numpy(gaussian_weights(tuple(patch_size))).to(volume.device)
    total: Tensor | None = None
    weight_sum = torch.zeros((patch_size[0], height, width), device=volume.device)
    with _evaluating(network):
        for z, next_z in pairwise([*starts_z, depth]):
            slab = padded[:, z : z + patch_size[0]]
            places = [
                tuple(slice(k, k + size) for k, size in zip(corner, patch_size[1:], strict=True))
                for corner in product(*starts_yx)
            ]
            tiles = list(product(places, FLIPPED_AXES[flips]))
            for begin in range(0, len(tiles), tiles_at_once):
                together = tiles[begin : begin + tiles_at_once]
                answers = network(torch.stack([_mirrored(slab[:, :, *place], axes) for place, axes in together]))
                if total is None:
                    total = torch.zeros((answers.shape[1], *weight_sum.shape), device=volume.device)
                # Accumulated immediately: an engine may reuse the memory of its output for the next call.
                for logits, (place, axes) in zip(answers, together, strict=True):
                    part = total[:, :, *place]
                    part.addcmul_(_mirrored(logits, axes).float(), weights, value=1 / len(FLIPPED_AXES[flips]))
            for place in places:
                weight_sum[:, *place] += weights
            assert total is not None
            finished = next_z - z
            # If z is padded there is only one slab, so ``inside`` can be applied to every slab.
            yield total[:, :finished].div_(weight_sum[:finished])[:, *inside]
            _move_up(total, finished, axis=1)
            _move_up(weight_sum, finished, axis=0)


def _mirrored(values: Tensor, axes: Sequence[int]) -> Tensor:
    """Flip axes (of z, y, x) of (C, z, y, x); without axes, nothing is copied."""
    return values.flip([axis + 1 for axis in axes]) if axes else values


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    if not isinstance(network, nn.Module):
        yield
        return
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def _move_up(slab: Tensor, count: int, axis: int) -> None:
    """Drop the first ``count`` slices, move the others to the front, and fill the end with zeros."""
    slices = slab.unbind(axis)
    for target, source in zip(slices, slices[count:], strict=False):
        target.copy_(source)
    slab.narrow(axis, len(slices) - count, count).zero_()


def tile_starts(shape: Sequence[int], patch_size: Sequence[int], tile_step: float) -> list[list[int]]:
    """The first voxel of each tile along each axis: equal steps of at most ``tile_step`` patches, rounded.

    A length of 110 with patches of 64 and a step of 0.5 gives 0, 23, 46.
    """
    starts = []
    for size, patch in zip(shape, patch_size, strict=True):
        count = math.ceil((size - patch) / (patch * tile_step)) + 1
        distance = (size - patch) / (count - 1) if count > 1 else 0.0
        starts.append([round(distance * k) for k in range(count)])
    return starts


@lru_cache(maxsize=4)
def gaussian_weights(patch_size: tuple[int, ...]) -> np.ndarray:
    """The weight of each voxel of a tile: a Gaussian with sigma = patch / 8, 1 at the centre, never 0."""
    impulse = np.zeros(patch_size)
    impulse[tuple(size // 2 for size in patch_size)] = 1
    weights = ndimage.gaussian_filter(impulse, [size / 8 for size in patch_size], mode="constant")
    weights /= weights.max()
    weights[weights == 0] = weights[weights > 0].min()
    return weights.astype(np.float32)


def _pad(volume: Tensor, patch_size: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad to the patch size where smaller; also return the volume's position in the result."""
    missing = [max(0, patch - size) for patch, size in zip(patch_size, volume.shape[1:], strict=True)]
    before = [m // 2 for m in missing]
    padding = [n for b, m in reversed(list(zip(before, missing, strict=True))) for n in (b, m - b)]
    inside = tuple(slice(b, b + size) for b, size in zip(before, volume.shape[1:], strict=True))
    return F.pad(volume, padding), inside
