"""How the processes of a distributed training are started: by this one, or all together by torchrun or srun."""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any, Literal

import lightning
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities.distributed import _destroy_dist_connection
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher, _WorkerOutput
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dlunet.errors import UserError
from dlunet.parallel import end_with_parent
from dlunet.training.faults import naming_cases

#: The ways in which this process can start others, by Lightning's names; spawned processes also work inside a sweep.
START_METHODS: dict[str, Literal["spawn", "fork"]] = {"ddp_spawn": "spawn", "ddp_fork": "fork"}


class SharedSteps(DDPStrategy):
    """Processes that share every step: Lightning's DDP without its wrapper around the networks.

    The wrapper allows one backward pass for all networks together and searches for weights without a gradient, such as
    those of the coarsest head, which has no loss. Here :class:`dlunet.training.SegmentationModule` averages the
    gradients, once a step.
    """

    def configure_ddp(self) -> None:
        """Leave out the wrapper."""

    def setup_environment(self) -> None:
        """Connect the processes; one that this process has started does not outlive it, and write beside another.

        On GPUs, Lightning has each process disconnect when it exits. One that has failed would wait there for the
        others, which wait for it. The module disconnects at the end of a training instead.
        """
        if parent_process() is not None:
            end_with_parent()
        super().setup_environment()
        atexit.unregister(_destroy_dist_connection)

    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _MultiProcessingLauncher):
            self._launcher = _Launcher(self, self._launcher._start_method)


class _Launcher(_MultiProcessingLauncher):
    """Lightning's, but the weights stay in the process that has trained: the run folder has them.

    Lightning passes them through the system's temporary folder, which may be too small.
    """

    def _wrapping_function(self, process_idx: int, trainer: lightning.Trainer | None, *arguments: Any) -> None:
        with naming_cases(trainer):
            super()._wrapping_function(process_idx, trainer, *arguments)

    def _collect_rank_zero_results(self, trainer: lightning.Trainer, results: Any) -> _WorkerOutput | None:
        if self._strategy.local_rank != 0:
            return None
        best = getattr(trainer.checkpoint_callback, "best_model_path", None)
        return _WorkerOutput(best, None, trainer.state, results, self.get_extra_results(trainer))


@dataclass(frozen=True)
class Launch:
    """This process among others that were started together with it.

    Attributes:
        environment: Lightning's view of them.
        devices: Processes on each machine.
        num_nodes: Machines.
    """

    environment: ClusterEnvironment
    devices: int
    num_nodes: int


def joint_launch(trainer: Mapping[str, Any]) -> Launch | None:
    """The launch by torchrun or srun, if this process is part of one; None: this process starts all others.

    The tasks of srun belong to one training only if there are as many as ``trainer`` asks for: otherwise each has a
    training of its own.

    Args:
        trainer: The settings of Lightning's trainer.

    Raises:
        UserError: Lightning cannot use the way in which srun was called.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        world, on_each = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Launch(TorchElasticEnvironment(), on_each, world // on_each) if world > 1 else None
    devices, num_nodes = device_count(trainer), int(trainer.get("num_nodes", 1))
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and tasks == devices * num_nodes:
        try:
            return Launch(SLURMEnvironment(auto_requeue=False), devices, num_nodes)
        except RuntimeError as error:  # such as --ntasks without --ntasks-per-node
            raise UserError(f"srun: {error}") from None
    return None


def launched_devices(trainer: Mapping[str, Any], launch: Launch) -> dict[str, Any]:
    """The settings ``devices`` and ``num_nodes`` that a launch stands for; a list of as many devices stays one."""
    devices = trainer.get("devices", 1)
    is_list = not isinstance(devices, (int, str)) or "," in str(devices)
    chosen = devices if is_list and device_count(trainer) == launch.devices else launch.devices
    return {"devices": chosen, "num_nodes": launch.num_nodes}


def rank() -> int:
    """The rank of this process, as far as Lightning knows it."""
    return int(getattr(rank_zero_only, "rank", 0))


def device_to_predict(trainer: Mapping[str, Any]) -> str:
    """The device, ``cpu`` or ``auto``, on which a training predicts when it is over: among those that it was given.

    Args:
        trainer: The config's node ``trainer``. The first GPU of a list becomes PyTorch's current one.
    """
    if trainer["accelerator"] == "cpu":
        return "cpu"
    devices = trainer["devices"]
    numbers = devices.split(",") if isinstance(devices, str) and "," in devices else devices
    if torch.cuda.is_available() and not isinstance(numbers, (int, str)):
        torch.cuda.set_device(int(numbers[0]))
    return "auto"


def is_first(trainer: Mapping[str, Any]) -> bool:
    """Whether this process is the one that writes the files of the run."""
    launch = joint_launch(trainer)
    return launch is None or launch.environment.global_rank() == 0


def processes_here(trainer: Mapping[str, Any]) -> int:
    """How many processes of the training there are on this machine."""
    launch = joint_launch(trainer)
    return device_count(trainer) if launch is None else launch.devices


def processes_sharing_cores(trainer: Mapping[str, Any]) -> int:
    """How many processes of the training share this one's cores: srun gives each of its tasks cores of its own."""
    launch = joint_launch(trainer)
    return 1 if launch and isinstance(launch.environment, SLURMEnvironment) else processes_here(trainer)


def launch_settings(trainer: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """The settings and plugins of Lightning's trainer, with which a training has the processes that it should have.

    Args:
        trainer: The settings of the config.

    Raises:
        UserError: Settings for several processes cannot be met.
    """
    settings = dict(instantiate(trainer, _convert_="all"))
    strategy = settings.pop("strategy", "ddp_spawn")
    if strategy not in START_METHODS:
        raise UserError(
            f"trainer.strategy: found {strategy}; expected one of {', '.join(START_METHODS)}: processes share each "
            "step, and the training averages their gradients itself; leave it out"
        )
    if launch := joint_launch(trainer):
        settings |= {**launched_devices(trainer, launch), "strategy": SharedSteps()}
        return settings, [launch.environment]
    if settings.get("num_nodes", 1) != 1:
        raise UserError(
            f"trainer.num_nodes: found {settings['num_nodes']}, but this process was not started together with others; "
            "start one process for each device with torchrun or srun, see docs/scaling.md"
        )
    # This process starts all others itself, so the task environment of a batch system does not apply to them.
    rank_zero_only.rank = 0  # type: ignore[attr-defined]
    os.environ.pop("LOCAL_RANK", None)
    if device_count(settings) > 1:
        if strategy == "ddp_fork" and torch.cuda.is_available():
            raise UserError("trainer.strategy: found ddp_fork, whose processes cannot use GPUs; leave it out")
        settings["strategy"] = SharedSteps(start_method=START_METHODS[strategy])
    return settings, [LightningEnvironment()]


def device_count(trainer: Mapping[str, Any]) -> int:
    """The number of devices that ``trainer.devices`` stands for: a number, a list, or all of them."""
    devices = trainer.get("devices", 1)
    if not isinstance(devices, (int, str)):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return 1 if trainer.get("accelerator") == "cpu" else max(1, torch.cuda.device_count())
    return len([part for part in str(devices).split(",") if part]) if "," in str(devices) else int(devices)
