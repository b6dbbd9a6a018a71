"""Lightning's trainer for a run: plugins, callbacks and strategy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig

from dlunet.errors import UserError
from dlunet.training.checkpoint import MovableCheckpoint, WholeCheckpointIO
from dlunet.training.loggers import build_loggers
from dlunet.training.run_folder import RunFolder


def build_trainer(
    config: DictConfig,
    folder: RunFolder,
    has_validation: bool,
    epochs_done: int,
    further_callbacks: Sequence[Callback] = (),
) -> lightning.Trainer:
    """Build Lightning's trainer with the callbacks and loggers of a run.

    Args:
        config: The composed config.
        folder: The run folder.
        has_validation: Whether there are validation cases that determine the best epoch.
        epochs_done: The number of epochs finished before the checkpoint to resume from; 0 for a new run.
        further_callbacks: Callbacks in addition to those of every run.

    Raises:
        UserError: The trainer settings are incompatible with each other or with the machine.
    """
    settings: dict[str, Any] = dict(config.trainer)
    plugins: list[Any] = [WholeCheckpointIO()]
    if "strategy" not in settings and settings.get("num_nodes", 1) == 1:
        # This process starts all others itself, so the task environment of a batch system does not apply to them.
        rank_zero_only.rank = 0  # type: ignore[attr-defined]
        os.environ.pop("LOCAL_RANK", None)
        plugins.append(LightningEnvironment())
    if _is_distributed(settings.get("devices", 1)):
        # Spawned processes also work inside a sweep. The coarsest head has no loss and therefore no gradient.
        settings.setdefault("strategy", "ddp_spawn_find_unused_parameters_true")
    loggers = build_loggers(config.logger, folder, epochs_done)
    try:
        return lightning.Trainer(
            **settings,
            plugins=plugins,
            default_root_dir=folder.path,
            callbacks=[*_callbacks(folder, has_validation), *further_callbacks],
            logger=loggers,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,  # the data module assigns each process its own cases
            num_sanity_val_steps=0,
            limit_val_batches=1.0 if has_validation else 0,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}; check the trainer settings") from None


def _callbacks(folder: RunFolder, has_validation: bool) -> list[Callback]:
    last = MovableCheckpoint(
        folder.checkpoints, folder.last.stem, enable_version_counter=False, save_on_train_epoch_end=True
    )
    best = MovableCheckpoint(folder.checkpoints, folder.best.stem, "val/dsc", mode="max", enable_version_counter=False)
    # The best first: the last checkpoint, from which a run resumes, then records which epoch is the best so far.
    return [*([best] if has_validation else []), last, LearningRateMonitor("step"), RichProgressBar(leave=False)]


def _is_distributed(devices: Any) -> bool:
    return len(devices) > 1 if isinstance(devices, list) else str(devices) not in ("1", "auto")
