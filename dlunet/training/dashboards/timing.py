"""Measures the time of a step and of its parts, and the memory of the process."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import lightning
import psutil
import torch
from lightning.pytorch.callbacks import Callback

from dlunet.methods import Batch
from dlunet.training.dashboards.boards import log_scalars

GIB = 2**30


class Timing(Callback):
    """Logs the means over every ``trainer.log_every_n_steps`` steps.

    ``time/step`` is the time of a step in seconds and the sum of its parts: ``time/data``, waiting for the batch;
    ``time/gradients``, losses and gradients; ``time/update``, clipping, optimiser and moving averages; ``time/rest``,
    everything else, such as logging. Validation does not count. On a GPU, which works through its queue meanwhile, the
    parts say where this process waited. ``memory/process_gib`` is the memory of this process, ``memory/gpu_gib`` the
    most that tensors on the GPU took.
    """

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._steps = 0
        self._at = 0.0  # the end of the last step, or of what does not count
        self._waited = 0.0  # what the data module said then
        self._batch_at = 0.0  # when the batch was there
        self._gradients_at = 0.0  # when its gradients were

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Leave out what happened between epochs."""
        self._begin(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Leave out a validation within an epoch."""
        self._begin(trainer)

    def on_train_batch_start(self, *args: Any) -> None:
        """The batch is there."""
        self._batch_at = time.perf_counter()

    def on_before_optimizer_step(self, *args: Any) -> None:
        """The gradients are there."""
        self._gradients_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """The step is finished."""
        before, waited, now = self._at, self._waited, time.perf_counter()
        self._begin(trainer)
        parts = {
            "data": self._waited - waited,
            "gradients": self._gradients_at - self._batch_at,
            "update": now - self._gradients_at,
        }
        self._sums.update({**parts, "step": now - before, "rest": now - before - sum(parts.values())})
        self._sums["patches"] += sum(len(next(iter(stream.values()))) for stream in batch.values())
        self._steps += 1
        if self._steps == trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._log(trainer, module.device)

    def _begin(self, trainer: lightning.Trainer) -> None:
        self._at = time.perf_counter()
        self._waited = trainer.datamodule.waited  # type: ignore[attr-defined]

    def _log(self, trainer: lightning.Trainer, device: torch.device) -> None:
        values = {"time/patches_per_second": self._sums["patches"] / self._sums["step"]}
        values |= {f"time/{part}": total / self._steps for part, total in self._sums.items() if part != "patches"}
        values["memory/process_gib"] = psutil.Process().memory_info().rss / GIB
        if device.type == "cuda":
            values["memory/gpu_gib"] = torch.cuda.max_memory_allocated(device) / GIB
        log_scalars(trainer, values)
        self._sums.clear()
        self._steps = 0
