"""A callback that logs the norms of weights."""

from __future__ import annotations

from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from dlunet.training.module import SegmentationModule


class WeightNorms(Callback):
    """Logs the L2 norm of the weights of each trained network, as ``train/weight_norm_ROLE``."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log them."""
        for role in cast(SegmentationModule, module).method.trained:
            weights = cast(SegmentationModule, module).networks[role].parameters()
            norm = torch.stack([weight.detach().norm() for weight in weights]).norm()
            module.log(f"train/weight_norm_{role}", norm, batch_size=1)
