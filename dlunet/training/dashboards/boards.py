"""Logs numbers and pictures to the dashboards of a trainer, and not to ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning
import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from dlunet.labels import LabelSet
from dlunet.volumes.slices import overlay

#: How often a run draws pictures, at most.
DRAWN = 30


@dataclass(frozen=True)
class Picture:
    """A slice with label maps over it.

    Attributes:
        grey: Values (y, x) of 0 … 1.
        label_maps: Label maps (y, x) by name.
        caption: What is shown.
    """

    grey: np.ndarray
    label_maps: Mapping[str, np.ndarray]
    caption: str


def dashboards(trainer: lightning.Trainer) -> list[Logger]:
    """The loggers of a trainer other than ``metrics.csv``, in the process that logs; none in the others."""
    if not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]


def log_scalars(trainer: lightning.Trainer, values: Mapping[str, float]) -> None:
    """Log numbers by name, at the last finished step."""
    for logger in dashboards(trainer):
        logger.log_metrics(dict(values), step=_step(trainer))


def log_pictures(trainer: lightning.Trainer, pictures: Mapping[str, Picture], labels: LabelSet) -> None:
    """Log pictures by name to the dashboards that show pictures, at the last finished step."""
    step = _step(trainer)
    for logger in dashboards(trainer):
        if isinstance(logger, WandbLogger):
            images: dict[str, Any] = {name: wandb_image(picture, labels) for name, picture in pictures.items()}
            logger.log_metrics(images, step=step)
        elif isinstance(logger, TensorBoardLogger):
            for name, picture in pictures.items():
                logger.experiment.add_image(name, _side_by_side(picture, labels), step, dataformats="HWC")


def wandb_image(picture: Picture, labels: LabelSet) -> Any:
    """A picture as ``wandb.Image``, whose label maps can be switched on and off."""
    import wandb  # only here: its memory is for those who use it

    names = {0: "background"} | {label.id: label.name for label in labels}
    masks = {
        name: {"mask_data": label_map.astype(np.uint8), "class_labels": names}
        for name, label_map in picture.label_maps.items()
    }
    return wandb.Image((picture.grey * 255).astype(np.uint8), caption=picture.caption, masks=masks)


def validates(trainer: lightning.Trainer) -> bool:
    """Whether the run validates in the current epoch, if it has validation cases."""
    return (trainer.current_epoch + 1) % _every(trainer) == 0


def draws(trainer: lightning.Trainer) -> bool:
    """Whether the run draws pictures in the current epoch: after validations, evenly spread, at the end of the run."""
    assert trainer.max_epochs is not None
    remaining, every = trainer.max_epochs - 1 - trainer.current_epoch, _every(trainer)
    validations = max(1, trainer.max_epochs // every)
    return validates(trainer) and remaining // every % -(-validations // DRAWN) == 0


def _every(trainer: lightning.Trainer) -> int:
    return trainer.check_val_every_n_epoch or 1


def _step(trainer: lightning.Trainer) -> int:
    """The number of the last finished step, from 0, as in Lightning's own logs."""
    return max(0, trainer.global_step - 1)


def _side_by_side(picture: Picture, labels: LabelSet) -> np.ndarray:
    """The slice, and the slice under each of its label maps: RGB (y, x, 3)."""
    columns = [overlay(picture.grey, label_map, labels) for label_map in (None, *picture.label_maps.values())]
    return np.concatenate(columns, axis=1)
