"""Early stopping, over several commands: whether a run has ended by it, and with which patience it is resumed."""

from __future__ import annotations

from collections.abc import Mapping

import lightning
from lightning.pytorch.callbacks import Callback, EarlyStopping

from dlunet.errors import UserError
from dlunet.training.run_folder import Done


class NewPatience(Callback):
    """Takes the patience of the settings for a resumed run; Lightning restores that of the checkpoint."""

    def __init__(self) -> None:
        self._patience: list[int] = []

    def setup(self, trainer: lightning.Trainer, module: lightning.LightningModule, stage: str) -> None:
        """Note it, before the checkpoint is read."""
        self._patience = [stopping.patience for stopping in _stopping(trainer)]

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Set it."""
        for stopping, patience in zip(_stopping(trainer), self._patience, strict=True):
            stopping.patience = patience


def check_can_stop(callbacks: Mapping[str, Callback], has_validation: bool) -> None:
    """Check that early stopping has a score to wait for.

    Args:
        callbacks: The callbacks of the config by name.
        has_validation: Whether there are validation cases that contain classes.

    Raises:
        UserError: It waits for a score of validation cases, and there are none.
    """
    for name, callback in callbacks.items():
        if isinstance(callback, EarlyStopping) and callback.monitor.startswith("val/") and not has_validation:
            raise UserError(
                f"callbacks.{name}: found monitor={callback.monitor}, but no validation case that contains a class; "
                "expected some; hold cases out (data.fold=0), or leave early stopping out"
            )


def has_stopped(callbacks: Mapping[str, Callback], done: Done, min_epochs: int) -> bool:
    """Whether early stopping has ended a run, and would with the settings of this command.

    Args:
        callbacks: The callbacks of the config by name.
        done: What the run has done.
        min_epochs: Epochs before which nothing is stopped.
    """
    return any(_has_stopped(each, done, min_epochs) for each in callbacks.values() if isinstance(each, EarlyStopping))


def _has_stopped(stopping: EarlyStopping, done: Done, min_epochs: int) -> bool:
    state = done.callbacks.get(stopping.state_key, {})
    # It stays in the state if the run goes on: until the fewest epochs are done, or after more patience.
    asked_in = state.get("stopped_epoch", 0)
    if not asked_in or done.epochs != max(asked_in + 1, min_epochs):
        return False
    was_impatient = state["wait_count"] >= state["patience"]
    return not was_impatient or state["wait_count"] >= stopping.patience


def _stopping(trainer: lightning.Trainer) -> list[EarlyStopping]:
    return [callback for callback in trainer.early_stopping_callbacks if isinstance(callback, EarlyStopping)]
