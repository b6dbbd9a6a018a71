"""A TorchIO dataset of patches: each item is drawn, read and augmented independently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio

from dlunet.preparation import PreparedCase
from dlunet.sampling.augmentation import Augmentation, crop_size, turn
from dlunet.sampling.sampler import ClassBalancedSampler, crop


class PatchDataset(tio.SubjectsDataset):
    """The patches of one stream in one epoch. Item k depends only on the seed and k, not on the number of workers.

    Args:
        cases: The prepared cases.
        order: The index of the case from which each item is cut.
        sampler: Draws the centre of a patch.
        augmentation: Applied to the crop.
        spacing: Voxel size (z, y, x) in mm.
        with_labels: Whether label maps are read: the cases' labels, or pseudo-labels that are targets.
        views: Names of the strong views made from each patch.
        seed: Seeds of the stream: run, stream and epoch.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        order: Sequence[int],
        sampler: ClassBalancedSampler,
        augmentation: Augmentation,
        spacing: Sequence[float],
        with_labels: bool,
        seed: Sequence[int],
        views: Sequence[str] = (),
    ) -> None:
        # TorchIO's constructor expects complete subjects; here a subject exists only once it is drawn.
        self.cases = cases
        self.order = order
        self.sampler = sampler
        self.augmentation = augmentation
        self.spacing = tuple(spacing)
        self.with_labels = with_labels
        self.seed = tuple(seed)
        self.views = tuple(views)

    def __len__(self) -> int:
        return len(self.order)

    def dry_iter(self) -> Sequence[Any]:
        """The case of each item; TorchIO's queue counts the items with it."""
        return self.order

    def __getitem__(self, index: int) -> tio.Subject:
        seeds = np.random.SeedSequence([*self.seed, index])
        generator = np.random.default_rng(seeds)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which also records its caller for each kind of GPU: that takes longer than a crop.
            torch.default_generator.manual_seed(int(seeds.generate_state(1)[0]))
            patch = self._draw(self.cases[self.order[index]], generator)
            for view in self.views:
                patch.add_image(self.augmentation.strengthen(patch.get_first_image()), view)
            return patch

    def _draw(self, case: PreparedCase, generator: np.random.Generator) -> tio.Subject:
        centre = self.sampler.draw_centre(case, generator)
        affine = self.augmentation.draw_affine()
        grid = np.diag([*self.spacing, 1.0])
        image = self._read(case.image[0], centre, affine, case.quantisation_step) * case.quantisation_step
        patch = tio.Subject(image=tio.ScalarImage(tensor=image, affine=grid), case=case.name)
        if self.with_labels:
            target = case.target
            assert target is not None
            label = self._read(target, centre, affine)
            patch.add_image(tio.LabelMap(tensor=label, affine=grid), "label")
        return self.augmentation.after(patch)

    def _read(
        self,
        volume: np.ndarray,
        centre: Sequence[int],
        affine: tio.Affine | None,
        quantisation_step: float | None = None,
    ) -> torch.Tensor:
        """The patch (1, z, y, x) of a volume, rotated and scaled before it is converted: integers are read faster."""
        size = [int(n) for n in self.sampler.patch_size]
        if affine is None:
            return crop(volume[None], centre, size)
        around = crop(volume, centre, crop_size(affine, size, self.spacing)).numpy()
        return torch.from_numpy(turn(affine, around, size, self.spacing, quantisation_step))[None]


def draw_order(num_cases: int, items: int, seed: Sequence[int], shift: int = 0) -> list[int]:
    """The case index of each item of an epoch: shuffled passes over the cases.

    Args:
        num_cases: Number of cases.
        items: Number of items.
        seed: Seeds of the shuffle.
        shift: Each pass is rotated by this many cases: orders with the same seed and different shifts, below the number
            of cases, never have the same case at the same position.
    """
    generator = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < items:
        order.extend(np.roll(generator.permutation(num_cases), -shift).tolist())
    return order[:items]
