"""A command as Hydra calls it: it can be sent to another process, and its errors end in one message."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlunet import sweeps
from dlunet.configs import register_resolvers
from dlunet.errors import UserError, message_for_users
from dlunet.plugins import load_plugins
from dlunet.settings import check_config


class Task:
    """A command as Hydra calls it, in this process or in one that a launcher has started.

    Errors that a user can act on end in one message and exit code 1. In a sweep, all errors are noted in the run's
    folder, and the other runs go on, see :mod:`dlunet.sweeps`.

    Args:
        command: A function of the config.
        swept: The settings that the command line sweeps over.
        plug_ins: The folder with the user's own configs and Python files.
    """

    def __init__(
        self, command: Callable[[DictConfig], float | None], swept: Collection[str], plug_ins: Path | None
    ) -> None:
        self.command = command
        self.swept = swept
        self.plug_ins = plug_ins
        self.was_sent = False
        register_resolvers(swept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Prepare a process that a launcher has started as this one was, where the plug-ins are loaded already."""
        self.__dict__.update(state)
        self.was_sent = True
        # A plug-in may ask whether there are GPUs. CUDA's own answer would keep forked runs from using them.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        if self.plug_ins is not None:
            load_plugins(self.plug_ins)
        register_resolvers(self.swept)

    def __call__(self, config: DictConfig) -> float | None:
        """Run the command; returns its score, by which a sweep may search."""
        logging.captureWarnings(True)
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it reports on its own caches
        with sweeps.noting_failures() if HydraConfig.get().mode is RunMode.MULTIRUN else failures_exit():
            check_config(config)  # a pipeline checks too, but only after imports that take seconds
            if "joblib" not in HydraConfig.get().launcher["_target_"]:
                return self.command(config)
            if self.was_sent:  # to one of several processes, which joblib has started
                return sweeps.in_own_process(partial(self._on_own_gpu, config))
            return self._on_own_gpu(config)
        return None

    def _on_own_gpu(self, config: DictConfig) -> float | None:
        if OmegaConf.select(config, "trainer.accelerator") != "cpu":
            devices = OmegaConf.select(config, "trainer.devices", default=1)
            sweeps.claim_gpu(devices, HydraConfig.get().job.num)
        return self.command(config)


@contextmanager
def failures_exit() -> Iterator[None]:
    """End the process with a message and exit code 1 if the block fails in a way that a user can act on."""
    try:
        yield
    except (UserError, OSError) as error:
        if (message := message_for_users(error)) is None:
            raise
        fail(message)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """End the process with a message."""
    print(f"dlunet: {message}", file=sys.stderr)
    sys.exit(exit_code)
