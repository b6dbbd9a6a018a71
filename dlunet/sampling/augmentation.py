"""Augmentation of crops: nnU-Net's list, by TorchIO's transforms where it has them.

Prepared intensities are normalised, around 0; TorchIO has no brightness and contrast for such images, so both are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torchio as tio


class Augmentation:
    """What is done to a crop before the patch is cut out of its middle.

    Args:
        affine: Rotation and scaling. It needs a margin around the patch, so it is drawn apart from the rest: a patch
            without it is read without the margin.
        affine_probability: How often it is applied.
        intensity: Transforms of the image's values, in order.
        flip: Mirroring.
    """

    def __init__(
        self,
        affine: tio.RandomAffine | None = None,
        affine_probability: float = 0.0,
        intensity: Sequence[tio.Transform] = (),
        flip: tio.Transform | None = None,
    ) -> None:
        self.affine = affine
        self.affine_probability = affine_probability
        self.after = tio.Compose([*intensity, *([flip] if flip is not None else [])])

    def draw_affine(self) -> tio.Affine | None:
        """Draw whether the next patch is rotated and scaled, and how."""
        if self.affine is None or torch.rand(()).item() >= self.affine_probability:
            return None
        drawn = self.affine
        scales, degrees, translation = drawn.get_params(drawn.scales, drawn.degrees, drawn.translation, drawn.isotropic)
        return tio.Affine(
            tuple(scales.tolist()),
            tuple(degrees.tolist()),
            tuple(translation.tolist()),
            center=drawn.center,
            default_pad_value=drawn.default_pad_value,
            default_pad_label=drawn.default_pad_label,
            image_interpolation=drawn.image_interpolation,
            label_interpolation=drawn.label_interpolation,
        )


def crop_size(affine: tio.Affine, patch_size: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """The crop (z, y, x) around a patch from which a rotation and scaling fills the whole patch.

    Args:
        affine: The transform, around the middle of the image.
        patch_size: (z, y, x), in voxels.
        spacing: Voxel size (z, y, x) in mm: a rotation turns millimetres, not voxels.
    """
    image = tio.ScalarImage(tensor=torch.zeros(1, 2, 2, 2))
    source_of = affine.get_affine_transform(image).TransformPoint
    middle = np.array(image.get_center(lps=True))
    half = np.array(patch_size) * spacing / 2
    corners = [middle + half * signs for signs in product((-1, 1), repeat=3)]
    reach = np.abs([np.array(source_of(corner.tolist())) - middle for corner in corners]).max(axis=0)
    # Even margins keep the patch in the middle; one more voxel for the interpolation.
    margins = [max(0, math.ceil(r - h)) for r, h in zip(reach / spacing + 1, np.array(patch_size) / 2, strict=True)]
    z, y, x = (size + 2 * margin for size, margin in zip(patch_size, margins, strict=True))
    return z, y, x


class RandomBrightness(tio.transforms.augmentation.RandomTransform, tio.transforms.IntensityTransform):
    """Multiply the image by a factor drawn from ``factors``."""

    def __init__(self, factors: tuple[float, float] = (0.75, 1.25), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factors = factors

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw one factor for the subject."""
        factor = self.sample_uniform(*self.factors)
        for image in self.get_images(subject):
            image.set_data(image.data * factor)
        return subject


class RandomContrast(tio.transforms.augmentation.RandomTransform, tio.transforms.IntensityTransform):
    """Stretch the image around its mean by a factor drawn from ``factors``, within the range it had."""

    def __init__(self, factors: tuple[float, float] = (0.75, 1.25), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factors = factors

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw one factor for the subject."""
        factor = self.sample_uniform(*self.factors)
        for image in self.get_images(subject):
            data = image.data
            low, high, mean = data.min().item(), data.max().item(), data.mean()
            image.set_data(((data - mean) * factor + mean).clamp(low, high))
        return subject
