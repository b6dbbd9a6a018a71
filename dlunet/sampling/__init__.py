"""Sampling of batches from prepared cases: class-balanced crops, augmentation, TorchIO queues, the data module."""

from dlunet.sampling.augmentation import Augmentation, RandomBrightness, RandomContrast, RandomGamma, RandomNoise
from dlunet.sampling.datamodule import PatchDataModule, check_counts
from dlunet.sampling.patches import PatchDataset, draw_order
from dlunet.sampling.sampler import ClassBalancedSampler, crop
from dlunet.sampling.workers import check_workers, worker_count

__all__ = [
    "Augmentation",
    "ClassBalancedSampler",
    "PatchDataModule",
    "PatchDataset",
    "RandomBrightness",
    "RandomContrast",
    "RandomGamma",
    "RandomNoise",
    "check_counts",
    "check_workers",
    "crop",
    "draw_order",
    "worker_count",
]
