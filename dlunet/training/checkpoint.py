"""Checkpoints that appear whole or not at all, of a run folder that may be moved or copied."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from dlunet.files import write_bytes

#: What Lightning remembers of its files, by path.
PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class MovableCheckpoint(ModelCheckpoint):
    """Lightning's callback, which forgets its best score where the folder has another path than it had.

    Here the files are looked for where the run folder is now, and the score counts for as long as its file is there.
    """

    @property
    def state_key(self) -> str:
        """Lightning's own: what earlier versions saved is found."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what a checkpoint says, for the folder where it lies now."""
        moved = {key: self._here(state_dict.get(key, "")) for key in PATHS}
        scores = {self._here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        state_dict = {**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath}
        if all(Path(path).exists() for path in scores):
            super().load_state_dict(state_dict)

    def _here(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces.

    Lightning writes it to the folder of temporary files first, which may be too small, and copies it from there over
    the one that was whole.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint under a temporary name, then rename it."""
        contents = io.BytesIO()
        torch.save(checkpoint, contents)
        write_bytes(Path(path), contents.getbuffer())
