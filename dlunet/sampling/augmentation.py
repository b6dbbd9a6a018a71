"""Augmentation of crops: nnU-Net's list, by TorchIO's transforms where it has them.

Prepared intensities are normalised, around 0; TorchIO has no brightness and contrast for such images, so both are here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
        self.affine_probability = affine_probability if affine is not None else 0.0
        self.after = tio.Compose([*intensity, *([flip] if flip is not None else [])])

    def draws_affine(self) -> bool:
        """Draw whether the next patch is rotated and scaled."""
        return self.affine_probability > 0 and torch.rand(()).item() < self.affine_probability

    def turn(self, subject: tio.Subject) -> tio.Subject:
        """Rotate and scale a crop."""
        assert self.affine is not None
        return self.affine(subject)

    def crop_size(self, patch_size: Sequence[int]) -> tuple[int, int, int]:
        """The crop (z, y, x) that holds a rotated and shrunk patch whole."""
        assert self.affine is not None
        degrees = max(abs(float(angle)) for angle in self.affine.degrees)
        smallest = min(float(scale) for scale in self.affine.scales)
        turn = math.radians(min(degrees, 45.0))
        sizes = []
        for size in patch_size:
            # A side seen from an axis that is turned by the largest angle; the other sides reach in by their sine.
            across = max(other for other in patch_size)
            reach = size * math.cos(turn) + across * math.sin(turn)
            sizes.append(math.ceil(max(size, reach) / smallest / 2) * 2)
        z, y, x = sizes
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
