"""A short run of a training module on one patch, without a dataset."""

import lightning
import torch

from dlunet.preparation import Intensity, Plan

PATCH = (16, 32, 32)
PLAN = Plan((8.0, 8.0, 8.0), PATCH, Intensity(0, 1, 0, 1))


def fit(module, folder, spoilt=0.0, batch=1, **settings):
    """Train three steps per epoch on ``batch`` patches, to a voxel of which ``spoilt`` is added."""
    settings = {"max_epochs": 1, **settings}
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, default_root_dir=folder, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **settings,
    )  # fmt: skip
    labelled = {"weak": torch.randn(batch, 1, *PATCH), "label": torch.randint(0, 14, (batch, *PATCH))}
    labelled["weak"][..., 0] += spoilt
    trainer.fit(module, torch.utils.data.DataLoader([{"labelled": labelled}] * 3, batch_size=None))
    return trainer
