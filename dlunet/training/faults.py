"""Steps whose gradients are not finite: the run stops, and the step is saved for ``dlunet debug``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlunet.errors import UserError, few
from dlunet.files import save_tensors
from dlunet.methods import Batch, Progress
from dlunet.networks import describe
from dlunet.run_layout import RunLayout
from dlunet.sampling import PatchDataModule
from dlunet.training.module import SegmentationModule


class Faults(Callback):
    """Saves the step whose gradients are not finite, and says what it consisted of.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: RunLayout) -> None:
        self.folder = folder

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """From here on, such a step is saved."""
        self._trainer = trainer
        cast(SegmentationModule, module).fault = self._fault

    def _fault(
        self, module: SegmentationModule, batch: Batch, progress: Progress, values: Mapping[str, Tensor]
    ) -> UserError:
        """Save a step, before it has changed the networks, and return the error that stops the run."""
        step, epoch, processes = progress.step, progress.epoch, self._trainer.world_size
        datamodule = cast(PatchDataModule, cast(Any, self._trainer).datamodule)
        cases = datamodule.cases_of(epoch, step % datamodule.steps_per_epoch)
        path = self.folder.faults / f"step-{step}{f'-process-{module.global_rank}' * (processes > 1)}.pt"
        saved = {
            "step": step,
            "epoch": epoch,
            "fraction": progress.fraction,
            "processes": processes,
            "cases": cases,
            "batch": {stream: dict(views) for stream, views in batch.items()},
            "described": describe(module.network_description, module.plan, module.labels),
            "state_dict": module.state_dict(),
        }
        save_tensors(saved, path)
        terms = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        patches = "; ".join(f"{stream} ({', '.join(views)}): {few(cases[stream])}" for stream, views in batch.items())
        return UserError(
            f"step {step}, in epoch {epoch}: gradients are not finite (losses: {terms}; patches: {patches}); the step "
            f"is saved, repeat it with: dlunet debug batch={path}; if the training diverged, train anew, with another "
            "output=FOLDER, with a lower optimizer.algorithm.lr"
        )


def read_fault(path: Path) -> dict[str, Any]:
    """A saved step.

    Raises:
        UserError: The file is missing, damaged, or something else.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(saved, dict) and {"batch", "state_dict", "described"} <= saved.keys():
            return saved
        reason = "it has no batch"
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected a step that a training saved when it stopped") from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    raise UserError(f"{path}: is not a step that a training saved, or is damaged ({reason})")
