"""Augmentation of crops: nnU-Net's transforms, from TorchIO where available.

Prepared intensities are distributed around 0. TorchIO has no brightness, contrast and gamma transforms for such images,
so they are implemented here.
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
    """The transforms of a crop, before the patch is cut from its centre.

    Args:
        affine: Rotation and scaling. They need a margin around the patch, so they are drawn separately: a patch without
            them is read without the margin.
        affine_probability: Probability of rotation and, independently, of scaling.
        intensity: Intensity transforms, in order.
        flip: Random flips.
        strong: Intensity transforms that turn a patch into its strong view.
    """

    def __init__(
        self,
        affine: tio.RandomAffine | None = None,
        affine_probability: float = 0.0,
        intensity: Sequence[tio.Transform] = (),
        flip: tio.Transform | None = None,
        strong: Sequence[tio.Transform] = (),
    ) -> None:
        self.affine = affine
        self.affine_probability = affine_probability
        self.after = tio.Compose([*intensity, *([flip] if flip is not None else [])])
        self.strong = tio.Compose(list(strong))

    def strengthen(self, image: tio.Image) -> tio.ScalarImage:
        """A strong view of an already augmented patch: same geometry, different intensities."""
        return self.strong(tio.ScalarImage(tensor=image.data.clone(), affine=image.affine))

    def draw_affine(self) -> tio.Affine | None:
        """Draw whether the next patch is rotated, scaled, or both, and how."""
        turned, scaled = (torch.rand(2) < self.affine_probability).tolist()
        if self.affine is None or not (turned or scaled):
            return None
        drawn = self.affine
        scales, degrees, translation = drawn.get_params(drawn.scales, drawn.degrees, drawn.translation, drawn.isotropic)
        return tio.Affine(
            tuple(scales.tolist()) if scaled else (1.0, 1.0, 1.0),
            tuple(degrees.tolist()) if turned else (0.0, 0.0, 0.0),
            tuple(translation.tolist()),
            center=drawn.center,
            default_pad_value=drawn.default_pad_value,
            default_pad_label=drawn.default_pad_label,
            image_interpolation=drawn.image_interpolation,
            label_interpolation=drawn.label_interpolation,
        )


def crop_size(affine: tio.Affine, patch_size: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """The size (z, y, x) of the crop that fills the complete patch after rotation and scaling.

    Args:
        affine: The transform, about the image centre.
        patch_size: (z, y, x), in voxels.
        spacing: Voxel size (z, y, x) in mm: the rotation acts in mm, not in voxels.
    """
    image = tio.ScalarImage(tensor=torch.zeros(1, 2, 2, 2))
    source_of = affine.get_affine_transform(image).TransformPoint
    middle = np.array(image.get_center(lps=True))
    half = np.array(patch_size) * spacing / 2
    corners = [middle + half * signs for signs in product((-1, 1), repeat=3)]
    reach = np.abs([np.array(source_of(corner.tolist())) - middle for corner in corners]).max(axis=0)
    # Equal margins keep the patch centred; one extra voxel is for the interpolation.
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
    """Scale the image about its mean by a factor drawn from ``factors``, clipped to its original range."""

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


class RandomGamma(tio.transforms.augmentation.RandomTransform, tio.transforms.IntensityTransform):
    """Rescale the image to 0 to 1 and raise it to a power; then restore its mean and standard deviation.

    Args:
        powers: The range of powers. Powers below and above 1 are equally likely.
        inverted: Apply it to the negated image, which affects bright tissue instead of dark tissue.
        kwargs: See :class:`torchio.Transform`.
    """

    def __init__(self, powers: tuple[float, float] = (0.7, 1.5), inverted: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.powers = powers
        self.sign = -1 if inverted else 1

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw one power for the subject."""
        low, high = self.powers
        power = self.sample_uniform(low, 1.0) if torch.rand(()) < 0.5 else self.sample_uniform(1.0, high)
        for image in self.get_images(subject):
            image.set_data(self.sign * self._raised(self.sign * image.data, power))
        return subject

    @staticmethod
    def _raised(data: torch.Tensor, power: float) -> torch.Tensor:
        low, extent = data.min(), data.max() - data.min()
        if extent == 0:  # constant patch, such as air
            return data
        raised = ((data - low) / extent) ** power
        return (raised - raised.mean()) / raised.std() * data.std() + data.mean()
