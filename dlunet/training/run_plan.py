"""The plan of a run, said before it starts: data, networks, and the memory and time that its steps take here."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import nn

from dlunet.methods import Progress
from dlunet.preparation import PreparedDataset
from dlunet.sampling import PatchDataModule
from dlunet.sampling.streams import cases_of
from dlunet.training.module import SegmentationModule
from dlunet.volumes import times

log = logging.getLogger(__name__)

#: Steps that are tried; the time is that of the last one, since the first one compiles and allocates.
TRIED = 2


@dataclass(frozen=True)
class Cost:
    """What a step takes.

    Attributes:
        seconds: Its time, without that of reading its patches and of the optimiser.
        bytes: The most memory that it needed: of the GPU, or of this process.
    """

    seconds: float
    bytes: int


class RunPlan(Callback):
    """Says the plan of a run before its first step.

    Args:
        config: The composed config.
        prepared: The prepared cases.
    """

    def __init__(self, config: DictConfig, prepared: PreparedDataset) -> None:
        self.config = config
        self.prepared = prepared

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Try steps without learning from them, and log the plan; end the run if it is a dry one."""
        trained = cast(SegmentationModule, module)
        cost = try_steps(trainer, trained)
        lines = plan_lines(self.config, self.prepared, trainer, trained, cost)
        width = max(len(name) for name, _ in lines)
        for name, value in lines:
            log.info("%s  %s", name.ljust(width), value)
        if self.config.dry_run:
            trainer.should_stop = True


def try_steps(trainer: lightning.Trainer, module: SegmentationModule) -> Cost:
    """Compute the gradients of a step of the last epoch, in which all streams are in use, and change nothing."""
    datamodule = cast(PatchDataModule, cast(Any, trainer).datamodule)
    epochs = int(trainer.max_epochs or 1)
    progress = Progress((epochs - 1) * datamodule.steps_per_epoch, epochs - 1, (epochs - 1) / epochs)
    batch = trainer.precision_plugin.convert_input(datamodule.patches_of(progress.epoch, 0))
    batch = trainer.strategy.batch_to_device(batch)
    on_gpu = module.device.type == "cuda"
    seconds = 0.0
    with _unchanged(module):
        for _ in range(TRIED):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats(module.device)
            begin = time.perf_counter()
            with trainer.precision_plugin.train_step_context():  # as Lightning does around a step
                module.gradients(batch, progress, module.manual_backward)
            if on_gpu:
                torch.cuda.synchronize(module.device)
            seconds = time.perf_counter() - begin
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(seconds, torch.cuda.max_memory_reserved(module.device) if on_gpu else of_process)


def plan_lines(
    config: DictConfig, prepared: PreparedDataset, trainer: lightning.Trainer, module: SegmentationModule, cost: Cost
) -> list[tuple[str, str]]:
    """The lines of the plan: a title and a text each."""
    sampling, plan = config.sampling, prepared.plan
    counts = {part: len(getattr(prepared, part)) for part in ("labelled", "unlabelled", "validation")}
    a_step = sampling.batch_size * sampling.accumulate_grad_batches * trainer.world_size
    epochs, steps = int(trainer.max_epochs or 0), int(sampling.steps_per_epoch)
    left = epochs * steps - trainer.global_step
    rest = timedelta(seconds=round(left * cost.seconds))
    networks = [f"{role}: {_network(module.networks[role])}" for role in module.method.trained]
    averaged = [f"{role}: average of {kind.of}" for role, kind in module.method.averaged.items()]
    an_epoch = [
        f"{name}: {steps * a_step * stream.times / len(cases_of(prepared, stream)):.3g}"
        for name, stream in module.method.streams.items()
    ]
    return [
        ("data", f"{config.data.name}: " + ", ".join(f"{count} {part}" for part, count in counts.items())),
        ("voxels", f"{times(plan.spacing)} mm, patches of {times(plan.patch_size)} (z, y, x)"),
        ("patches of a case per epoch", ", ".join(an_epoch)),
        ("networks", "; ".join([*networks, *averaged])),
        ("step", f"{a_step} patches of each stream in {trainer.world_size} process(es), {config.trainer.precision}"),
        ("memory of a step", f"{cost.bytes / 2**30:.2f} GiB, measured"),
        ("time of a step", f"{cost.seconds:.3g} s, measured"),
        ("steps", f"{left} left of {epochs} epochs with {steps} steps"),
        (
            "expected end",
            f"{datetime.now() + rest:%Y-%m-%d %H:%M}, in {rest}, plus validation and waiting for patches",
        ),
    ]


def _network(network: nn.Module) -> str:
    parameters = sum(weight.numel() for weight in network.parameters())
    return f"{type(network).__name__}, {parameters:,} parameters"


@contextmanager
def _unchanged(module: SegmentationModule) -> Iterator[None]:
    """Restore weights, states, gradients and random numbers after the block."""
    before = {name: value.detach().clone() for name, value in module.state_dict().items()}
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
    module.load_state_dict(before)
    module.zero_grad()
