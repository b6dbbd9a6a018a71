"""The callbacks that log to dashboards, and those of them that need no file of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlunet.datasets import Dataset
from dlunet.labels import LabelSet
from dlunet.preparation import Plan, PreparedDataset
from dlunet.training.dashboards.boards import Picture, dashboards, draws, log_pictures
from dlunet.training.dashboards.probe import Probe, as_grey
from dlunet.training.dashboards.timing import Timing
from dlunet.volumes.slices import most_organs_slice

#: The number of validation cases that are shown.
SHOWN = 2


def dashboard_callbacks(settings: dict[str, Any], prepared: PreparedDataset, dataset: Dataset) -> list[Callback]:
    """The callbacks of a run that has a dashboard.

    Args:
        settings: The resolved config of the run.
        prepared: The prepared cases.
        dataset: The cases that they were prepared from.
    """
    callbacks: list[Callback] = [Settings(settings), Timing()]
    names = [case.name for case in prepared.validation[:SHOWN]]
    callbacks.append(ValidationSlices(names, prepared.labels, prepared.plan))
    files = {case.name: case.image for case in dataset.unlabelled}
    unlabelled = [(case, files[case.name]) for case in prepared.unlabelled]
    return [*callbacks, Probe(unlabelled, prepared.labels, prepared.plan)] if unlabelled else callbacks


class Settings(Callback):
    """Logs the settings of the run, by which dashboards sort and filter.

    Args:
        settings: The resolved config.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Log them."""
        for logger in dashboards(trainer):
            logger.log_hyperparams(self.settings)


class ValidationSlices(Callback):
    """Shows a slice of the first validation cases, always the same, as it is and as it should be segmented.

    Args:
        cases: The names of the first validation cases.
        labels: The classes.
        plan: The plan of the prepared cases.
    """

    def __init__(self, cases: Sequence[str], labels: LabelSet, plan: Plan) -> None:
        self.cases = cases
        self.labels = labels
        self.plan = plan
        self._pictures: dict[str, Picture] = {}

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the slice of a case with the classes found, the output of the validation step."""
        if batch_idx >= len(self.cases) or not draws(trainer) or not trainer.is_global_zero:
            return
        label = batch["label"].cpu().numpy()
        z = most_organs_slice(label)
        label_maps = {"prediction": outputs[z].cpu().numpy(), "reference": label[z]}
        name = self.cases[batch_idx]
        self._pictures[f"pictures/validation/{name}"] = Picture(
            as_grey(batch["image"][0, z], self.plan), label_maps, f"{name}, slice {z}"
        )

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Log the pictures."""
        if self._pictures:
            log_pictures(trainer, self._pictures, self.labels)
            self._pictures.clear()
