"""Faults in training: steps whose gradients are not finite, saved for ``dlunet debug``, and readers that are killed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from dlunet.errors import UserError, few, in_one_line
from dlunet.files import save_tensors
from dlunet.methods import Batch, Progress
from dlunet.networks import describe
from dlunet.run_layout import RunLayout
from dlunet.sampling import PatchDataModule
from dlunet.training.module import SegmentationModule

#: How PyTorch says that a reader of patches was killed.
KILLED_READER = "DataLoader worker (pid"


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


def of_killed_reader(reason: str, datamodule: PatchDataModule) -> str:
    """The message about a killed reader of the patches of a data module."""
    cases = "; ".join(f"{stream}: {', '.join(names)}" for stream, names in datamodule.awaited_cases.items())
    codes = "".join(f"exit code {code}; " for code in datamodule.exit_codes)
    return (
        f"a process that reads patches was killed, probably out of memory ({codes}{reason})"
        f"{f', when the next patches were of {cases}' * bool(cases)}; use fewer: sampling.num_workers=0; add "
        "resume=auto to continue from the last checkpoint"
    )


@contextmanager
def naming_cases(trainer: lightning.Trainer | None) -> Iterator[None]:
    """In a process that the training has started, name the cases, which the one that started it does not know.

    Raises:
        UserError: A reader of patches was killed in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if KILLED_READER not in str(error):
            raise
        raise UserError(of_killed_reader(in_one_line(error), cast(Any, trainer).datamodule)) from None


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
