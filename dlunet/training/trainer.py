"""Lightning's trainer for a run: plugins and callbacks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from dlunet.errors import UserError
from dlunet.signals import StopRequest
from dlunet.training.checkpoint import LastCheckpoint, MovableCheckpoint, WholeCheckpointIO
from dlunet.training.early_stopping import NewPatience
from dlunet.training.faults import Faults
from dlunet.training.launch import launch_settings
from dlunet.training.loggers import build_loggers
from dlunet.training.logs import LogOfProcesses, silence_lightning
from dlunet.training.run_folder import RunFolder


def build_trainer(
    config: DictConfig,
    folder: RunFolder,
    has_validation: bool,
    steps_done: int,
    request: StopRequest,
    further_callbacks: Sequence[Callback] = (),
) -> lightning.Trainer:
    """Build Lightning's trainer with the callbacks and loggers of a run.

    Args:
        config: The composed config.
        folder: The run folder.
        has_validation: Whether there are validation cases that determine the best epoch.
        steps_done: The number of steps before the checkpoint to resume from; 0 for a new run.
        request: Notes a signal that asks the run to stop.
        further_callbacks: Callbacks in addition to those of every run.

    Raises:
        UserError: The trainer settings are incompatible with each other or with the machine.
    """
    settings, plugins = launch_settings(config.trainer)
    # A run that was made shorter is validated at its end, or it would have no best epoch.
    settings["check_val_every_n_epoch"] = min(settings["check_val_every_n_epoch"], settings["max_epochs"])
    loggers: list[Logger] = [DummyLogger()]  # a dry run leaves the folder as it is
    if not config.dry_run:
        loggers = build_loggers(config.logger, folder, steps_done, config.checkpoint.on_full)
    return _trainer(
        settings,
        plugins=[WholeCheckpointIO(config.checkpoint.on_full), *plugins],
        default_root_dir=folder.path,
        callbacks=[
            LogOfProcesses(None if config.dry_run else folder),
            *_callbacks(config.checkpoint, folder, has_validation, request),
            *further_callbacks,
        ],
        logger=loggers,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,  # the data module shares out the patches
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if has_validation else 0,
        enable_model_summary=False,
    )


def check_trainer(trainer: DictConfig) -> None:
    """Build Lightning's trainer without the callbacks and loggers of a run, and discard it.

    Args:
        trainer: The settings of the config.

    Raises:
        UserError: They are incompatible with each other or with the machine.
    """
    settings, plugins = launch_settings(trainer)
    with warnings.catch_warnings(action="ignore"):  # they are shown when the trainer of the run is built
        silence_lightning()
        _trainer(settings, plugins=plugins, logger=False)


def _trainer(settings: dict[str, Any], **ours: Any) -> lightning.Trainer:
    """Lightning's trainer with settings of the user and others, which the user cannot choose."""
    try:
        trainer = lightning.Trainer(**settings, **ours)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {error}; check the trainer settings") from None
    trainer._signal_connector = _NoSignals(trainer)
    return trainer


class _NoSignals(_SignalConnector):
    """Signals are noted by :class:`LastCheckpoint`.

    Lightning's handler of SIGTERM exchanges a message with the other processes, whatever they exchange at that moment:
    they could wait for each other forever.
    """

    def register_signal_handlers(self) -> None:
        """Set none."""


def _callbacks(checkpoint: DictConfig, folder: RunFolder, has_validation: bool, request: StopRequest) -> list[Callback]:
    last = LastCheckpoint(folder, request, checkpoint.every_n_steps, checkpoint.every_n_minutes, checkpoint.on_full)
    best = MovableCheckpoint(folder.checkpoints, folder.best.stem, "val/dsc", mode="max", enable_version_counter=False)
    # The best first: the last checkpoint, from which a run resumes, then records which epoch is the best so far.
    checkpoints = [*([best] if has_validation else []), last]
    return [
        *checkpoints,
        Faults(folder),
        NewPatience(),
        LearningRateMonitor("step"),
        RichProgressBar(leave=False),
    ]
