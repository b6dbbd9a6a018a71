"""Training: the LightningModule, and the run from config to checkpoint."""

from dlunet.training.module import SegmentationModule
from dlunet.training.run import prepare, train

__all__ = ["SegmentationModule", "prepare", "train"]
