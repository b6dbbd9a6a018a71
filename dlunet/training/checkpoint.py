"""Checkpoints that are written atomically and survive moving or copying the run folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from dlunet.files import write_bytes

#: The paths of checkpoint files that Lightning stores in its state.
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's callback, adapted to run folders that change their path.

    Lightning drops its best score if the path of the folder has changed. Here the files are looked up in the current
    run folder, and the score is kept as long as its file exists.
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
        if all(Path(path).exists() for path in scores):
            super().load_state_dict(state_dict)

    def _here(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, beside the one to be replaced.

    Lightning writes to the system's temporary folder first, which may be too small, and then copies over the intact
    previous checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        contents = io.BytesIO()
        torch.save(checkpoint, contents)
        write_bytes(Path(path), contents.getbuffer())
