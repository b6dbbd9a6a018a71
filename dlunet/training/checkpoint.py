"""Checkpoints: written atomically, also within an epoch, and usable in a run folder that was moved or copied."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from copy import copy
from pathlib import Path
from typing import Any, cast

import lightning
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from dlunet.distributed import highest
from dlunet.errors import UserError
from dlunet.files import link_or_copy, save_tensors
from dlunet.networks.checkpoint_files import damage_of
from dlunet.run_layout import RunLayout
from dlunet.signals import Stopped, StopRequest
from dlunet.training.full_disk import OnFull
from dlunet.training.module import SegmentationModule, Wishes

log = logging.getLogger(__name__)

#: The paths of checkpoint files that Lightning stores in its state.
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")

#: What Lightning stores of the best checkpoint.
BEST = ("best_k_models", "best_model_path", "best_model_score", "kth_best_model_path", "kth_value")


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's callback, adapted to run folders that change their path.

    Lightning drops its best score if the path of the folder has changed. Here the files are looked up in the current
    run folder, and the score is kept as long as its file is there and whole. A checkpoint that could not be written is
    not the best.
    """

    @property
    def state_key(self) -> str:
        """Lightning's own key, so that the state saved by earlier versions is found."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from a checkpoint, with paths in the current folder."""
        moved = {key: self._here(state_dict.get(key, "")) for key in PATHS}
        scores = {self._here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        state_dict = {**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath}
        if all(self._is_whole(Path(path)) for path in scores):
            super().load_state_dict(state_dict)

    @staticmethod
    def _is_whole(path: Path) -> bool:
        if path.exists() and (damage := damage_of(path)) is not None:
            log.warning("warning: %s: is damaged (%s); the best of the epochs to come replaces it", path, damage)
            return False
        return path.exists()

    def _update_best_and_save(self, current: Tensor, trainer: lightning.Trainer, candidates: dict[str, Tensor]) -> None:
        before = {name: copy(getattr(self, name)) for name in BEST}
        super()._update_best_and_save(current, trainer, candidates)
        if _found_no_room(trainer):
            vars(self).update(before)

    def _here(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


class LastCheckpoint(Checkpoint):
    """Writes the last checkpoint, and ends the run where a signal asks for it.

    A checkpoint is written at the end of every epoch, one step before a validation, which may take minutes, every few
    steps or minutes if wanted, and at the end of the step in which a signal comes. The one before it is kept. All
    processes of a run write, and end, after the same step. (Lightning calls its checkpoint callbacks after all others,
    in their order.)

    Lightning logs the metrics of a step after all callbacks. A checkpoint is therefore the last one only from the next
    step on: a run that is killed in between repeats the step, otherwise its metrics would be missing.

    Args:
        folder: The run folder.
        request: Notes the first signal; a second one stops at once.
        every_n_steps: Steps between two checkpoints; None: only epochs count.
        every_n_minutes: Minutes between two checkpoints; None: only epochs count.
        on_full: See :class:`OnFull`.
    """

    def __init__(
        self,
        folder: RunLayout,
        request: StopRequest,
        every_n_steps: int | None = None,
        every_n_minutes: float | None = None,
        on_full: str = "stop",
    ) -> None:
        self.folder = folder
        self.request = request
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.on_full = OnFull(on_full)
        self._saved = 0.0  # when the last checkpoint was written
        self._between_validations = 0  # steps
        self._noting = ExitStack()

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """From here on, a signal waits for the end of a step."""
        self._noting.enter_context(self.request.noting())
        self._saved = time.monotonic()
        self._between_validations = int(trainer.num_training_batches) * (trainer.check_val_every_n_epoch or 1)
        cast(SegmentationModule, module).asked = self._asked

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Only now, the metrics of the last step are logged: let its checkpoint count, and end the run if it is to."""
        self._let_count(trainer)
        if cast(SegmentationModule, module).agreed.stop:
            of_any_process = highest(self.request.number or 0, module.device)
            raise Stopped(self.request.number or of_any_process)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if there is to be one after this step; after the last one of an epoch, the epoch does."""
        if any(cast(SegmentationModule, module).agreed) and not trainer.is_last_batch:
            self._write(trainer)

    def on_validation_batch_start(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        """End the run if a signal has come: a validation may take minutes, and is repeated."""
        if trainer.world_size == 1:
            self.request.obey()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Write the checkpoint of the epoch."""
        self._write(trainer)
        self._let_count(trainer)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """From here on, a signal stops at once again. What was trained must be in the last checkpoint.

        Raises:
            UserError: There was no room for the last checkpoint (with ``on_full="continue"``).
        """
        self._noting.close()
        if _found_no_room(trainer) and self.request.number is None:  # a signal takes precedence
            raise UserError(
                f"{self.folder.last}: the end of the training could not be written, and is lost; free some space, then "
                "add resume=auto to train it again"
            )

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """From here on, a signal stops at once again."""
        self._noting.close()

    def _asked(self, step: int) -> Wishes:
        """What this process wishes after a step."""
        by_steps = self.every_n_steps is not None and (step + 1) % self.every_n_steps == 0
        before_validation = (step + 2) % self._between_validations == 0
        minutes = (time.monotonic() - self._saved) / 60
        by_time = self.every_n_minutes is not None and minutes >= self.every_n_minutes
        return Wishes(stop=self.request.number is not None, save=by_steps or before_validation or by_time)

    def _write(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero and self.folder.last.exists():
            with self.on_full:
                link_or_copy(self.folder.last, self.folder.previous)
        trainer.save_checkpoint(self.folder.unlogged)
        self._saved = time.monotonic()

    def _let_count(self, trainer: lightning.Trainer) -> None:
        if trainer.is_global_zero and self.folder.unlogged.exists():
            self.folder.unlogged.replace(self.folder.last)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, beside the one to be replaced.

    Lightning writes to the system's temporary folder first, which may be too small, and then copies over the intact
    previous checkpoint.

    Args:
        on_full: See :class:`OnFull`.
    """

    def __init__(self, on_full: str = "stop") -> None:
        self.on_full = OnFull(on_full)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        with self.on_full:
            save_tensors(checkpoint, Path(path))


def _found_no_room(trainer: lightning.Trainer) -> bool:
    """Whether there was no room for the newest checkpoint, as the first process knows, which alone writes."""
    files = cast(WholeCheckpointIO, trainer.strategy.checkpoint_io)
    return trainer.strategy.broadcast(files.on_full.is_full)
