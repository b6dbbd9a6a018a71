"""From prepared cases to batches: class-balanced sampling, augmentation, TorchIO queues, the data module."""

from dlunet.sampling.augmentation import Augmentation, RandomBrightness, RandomContrast, RandomGamma
from dlunet.sampling.datamodule import PatchDataModule
from dlunet.sampling.patches import PatchDataset, draw_order
from dlunet.sampling.sampler import ClassBalancedSampler, crop

__all__ = [
    "Augmentation",
    "ClassBalancedSampler",
    "PatchDataModule",
    "PatchDataset",
    "RandomBrightness",
    "RandomContrast",
    "RandomGamma",
    "crop",
    "draw_order",
]
