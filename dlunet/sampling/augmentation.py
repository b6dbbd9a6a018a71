"""Augmentation of crops: nnU-Net's transforms, from TorchIO where available.

Prepared intensities are distributed around 0. TorchIO has no brightness, contrast and gamma transforms for such images,
so they are implemented here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio


class Augmentation:
    """The transforms of a patch.

    Args:
        affine: Rotation and scaling, about the centre of the patch. They need a margin around the patch, so they are
            drawn separately: a patch without them is read without the margin.
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
        self.after = _in_place([*intensity, *([flip] if flip is not None else [])])
        self.strong = _in_place(strong)

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
            default_pad_value=drawn.default_pad_value,
            default_pad_label=drawn.default_pad_label,
            image_interpolation=drawn.image_interpolation,
            label_interpolation=drawn.label_interpolation,
        )


def _in_place(transforms: Sequence[tio.Transform]) -> tio.Compose:
    """All transforms in order, without the copies of the patch that TorchIO makes for each: it is used only once."""
    for transform in transforms:
        transform.copy = False
    return tio.Compose(transforms, copy=False)


def crop_size(affine: tio.Affine, patch_size: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """The size (z, y, x) of the crop that fills the complete patch after rotation and scaling.

    Args:
        affine: The transform, about the image centre.
        patch_size: (z, y, x), in voxels.
        spacing: Voxel size (z, y, x) in mm: the rotation acts in mm, not in voxels.
    """
    matrix, shift = _source(affine, tuple(spacing))
    half = np.array(patch_size) / 2
    # The corners are opposite each other: the farthest of all is at the sum of the sizes along each axis.
    reach = np.abs(matrix) @ half + np.abs(shift)
    # Equal margins keep the patch centred; one extra voxel is for the interpolation.
    z, y, x = (size + 2 * max(0, math.ceil(margin)) for size, margin in zip(patch_size, reach + 1 - half, strict=True))
    return z, y, x


def turn(
    affine: tio.Affine,
    crop: np.ndarray,
    patch_size: Sequence[int],
    spacing: Sequence[float],
    quantisation_step: float | None = None,
) -> np.ndarray:
    """The patch at the centre of a crop after rotation and scaling.

    TorchIO's own resampling transposes the crop and computes all of its voxels, most of which would be cut off.

    Args:
        affine: The transform, about the image centre.
        crop: (z, y, x), with equal margins around the patch on both sides.
        patch_size: (z, y, x), in voxels.
        spacing: Voxel size (z, y, x) in mm.
        quantisation_step: That of an image, in which its values outside the crop are converted; None for a label map.

    Returns:
        (z, y, x): an image as float32, in quantisation steps; a label map with its dtype.
    """
    matrix, shift = _source(affine, tuple(spacing))
    volume = sitk.GetImageFromArray(crop)
    # In voxels from the first one; SimpleITK counts axes backwards.
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[::-1, ::-1].ravel().tolist())
    transform.SetCenter(((np.array(patch_size) - 1) / 2)[::-1].tolist())
    transform.SetTranslation((shift + (np.array(crop.shape) - patch_size) / 2)[::-1].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(size) for size in reversed(patch_size)])
    resampler.SetTransform(transform)
    if quantisation_step is None:
        resampler.SetInterpolator(affine.get_sitk_interpolator(affine.label_interpolation))
        resampler.SetDefaultPixelValue(affine.default_pad_label)
    else:
        pad = affine.get_default_pad_value(torch.from_numpy(crop), volume)
        is_number = not isinstance(affine.default_pad_value, str)  # the others are computed from the crop
        resampler.SetInterpolator(affine.get_sitk_interpolator(affine.image_interpolation))
        resampler.SetDefaultPixelValue(pad / quantisation_step if is_number else float(pad))
        resampler.SetOutputPixelType(sitk.sitkFloat32)
    return sitk.GetArrayFromImage(resampler.Execute(volume))


@lru_cache(maxsize=1)  # for the size of the crop, the image and the label map of a patch
def _source(affine: tio.Affine, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and shift from an offset to the image centre (z, y, x), in voxels, to the offset it is resampled from."""
    image = tio.ScalarImage(tensor=torch.zeros(1, 2, 2, 2))
    source_of = affine.get_affine_transform(image).TransformPoint
    middle = np.array(image.get_center(lps=True))
    # One voxel along each axis. The affine is in LPS coordinates, in which the first two axes point backwards.
    steps = np.array((-1, -1, 1)) * spacing
    centre = np.array(source_of(middle.tolist()))
    columns = [np.array(source_of((middle + step).tolist())) - centre for step in np.diag(steps)]
    return np.stack(columns, axis=1) / steps[:, None], (centre - middle) / steps


class RandomNoise(tio.RandomNoise):
    """TorchIO's noise, from a generator of its own: to seed PyTorch's takes as long as to draw a small patch."""

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw mean, standard deviation and noise for each image."""
        for image in self.get_images(subject):
            mean, deviation, seed = self.get_params(self.mean_range, self.std_range)
            noise = torch.randn(image.data.shape, generator=torch.Generator().manual_seed(seed))
            image.set_data(noise.mul_(deviation).add_(mean).add_(image.data))
        return subject


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
            low, high = (value.item() for value in torch.aminmax(image.data))
            mean = image.data.mean()
            image.set_data(image.data.sub(mean).mul_(factor).add_(mean).clamp_(low, high))
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
        self.inverted = inverted

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Draw one power for the subject."""
        low, high = self.powers
        power = self.sample_uniform(low, 1.0) if torch.rand(()) < 0.5 else self.sample_uniform(1.0, high)
        for image in self.get_images(subject):
            image.set_data(self._raised(image.data, power))
        return subject

    def _raised(self, data: torch.Tensor, power: float) -> torch.Tensor:
        low, high = torch.aminmax(data)
        if low == high:  # constant patch, such as air
            return data
        raised = (high - data if self.inverted else data - low).div_(high - low).pow_(power)
        gain = data.std() / raised.std()
        return raised.sub_(raised.mean()).mul_(-gain if self.inverted else gain).add_(data.mean())
