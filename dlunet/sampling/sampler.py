"""Draws class-balanced patch centres and reads crops around them."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch
import torchio as tio

from dlunet.preparation import PreparedCase


class ClassBalancedSampler(tio.data.sampler.PatchSampler):
    """A TorchIO sampler for prepared cases that draws before anything is read.

    The queue calls TorchIO's own samplers on volumes that were read and augmented completely. Here the dataset gets the
    centre from :meth:`draw_centre`, and reads and augments only a crop; its subjects are finished patches, which are
    passed to the queue unchanged.

    Args:
        patch_size: (z, y, x).
        foreground_fraction: The fraction of patches centred on a foreground voxel, with all classes of the case equally
            likely. The others are centred anywhere. The classes of an unlabelled case are those of its pseudo-labels;
            without pseudo-labels, its patches are centred anywhere.
    """

    def __init__(self, patch_size: Sequence[int], foreground_fraction: float = 1 / 3) -> None:
        z, y, x = patch_size
        super().__init__((z, y, x))
        self.foreground_fraction = foreground_fraction

    def draw_centre(self, case: PreparedCase, generator: np.random.Generator) -> tuple[int, int, int]:
        """The centre voxel (z, y, x) of the next patch of a case."""
        if case.ranges and generator.random() < self.foreground_fraction:
            voxels = case.class_voxels(int(generator.choice(list(case.ranges))))
            z, y, x = voxels[generator.integers(len(voxels))].tolist()
        else:
            z, y, x = (self._anywhere(n, p, generator) for n, p in zip(case.shape, self._size, strict=True))
        return z, y, x

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject]:
        """Yield the finished patch, for the queue."""
        yield subject

    @property
    def _size(self) -> list[int]:
        return [int(n) for n in self.patch_size]

    @staticmethod
    def _anywhere(size: int, patch: int, generator: np.random.Generator) -> int:
        """A centre with the patch inside the volume, or the centre of the volume if the patch is larger."""
        return size // 2 if size <= patch else patch // 2 + int(generator.integers(size - patch + 1))


def crop(array: np.ndarray, centre: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """Read a box around a voxel; voxels outside the volume are 0.

    Args:
        array: (…, z, y, x); from a memory-mapped array, only the box is read.
        centre: The voxel (z, y, x) at index ``size // 2`` of the box.
        size: (z, y, x) of the box.

    Returns:
        (…, *size), with the array's dtype.
    """
    starts = [c - n // 2 for c, n in zip(centre, size, strict=True)]
    inside = [slice(max(0, s), max(0, min(s + n, m))) for s, n, m in zip(starts, size, array.shape[-3:], strict=True)]
    within = [slice(i.start - s, i.stop - s) for i, s in zip(inside, starts, strict=True)]
    box = np.zeros((*array.shape[:-3], *size), array.dtype)
    lead = [slice(None)] * (array.ndim - 3)
    box[tuple(lead + within)] = array[tuple(lead + inside)]
    return torch.from_numpy(box)
