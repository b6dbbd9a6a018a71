"""The loggers of a run: always ``metrics.csv``, plus the configured logger."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from dlunet.errors import UserError
from dlunet.files import write_text
from dlunet.training.launch import rank
from dlunet.training.metrics_file import metrics_logger
from dlunet.training.run_folder import RunFolder


def check_login(logger: DictConfig) -> None:
    """Check that the run can be sent to Weights & Biases before any work is done.

    Raises:
        UserError: It is to be sent, but there is no login or the server cannot be reached.
    """
    if not _uses_wandb(logger) or logger.offline:
        return
    import wandb  # only here: its memory is for those who use it

    try:
        if wandb.login(timeout=60):
            return
        reason = "no API key"
    except wandb.Error as error:
        reason = str(error)
    raise UserError(
        f"logger.offline=false: Weights & Biases cannot be used ({reason}); run `wandb login` or set WANDB_API_KEY, "
        "check the network, or log offline (logger.offline=true) and upload later with `wandb sync`"
    )


def build_loggers(logger: DictConfig, folder: RunFolder, steps_done: int, on_full: str) -> list[Logger]:
    """The configured logger and always ``metrics.csv``, which the report reads.

    Args:
        logger: The config of the logger; without a target, only ``metrics.csv`` is written.
        folder: The run folder.
        steps_done: See :func:`dlunet.training.metrics_file.metrics_logger`.
        on_full: See :class:`dlunet.training.full_disk.OnFull`.

    Raises:
        UserError: The configured logger is not installed.
    """
    loggers: list[Logger] = [metrics_logger(folder.path, steps_done, on_full)]
    if not has_dashboard(logger):
        return loggers
    if _uses_wandb(logger) and steps_done == 0 and rank() == 0:
        folder.wandb_id.unlink(missing_ok=True)  # of a run that did not come to its first checkpoint
    return [*loggers, _instantiated(logger, folder)]


def has_dashboard(logger: DictConfig) -> bool:
    """Whether a logger is configured, besides ``metrics.csv``, and not turned off."""
    return "_target_" in logger and ("WandbLogger" not in logger._target_ or _uses_wandb(logger))


def wandb_run(logger: DictConfig, folder: RunFolder) -> Any:
    """The run of Weights & Biases of a run folder; None if there is to be none."""
    if not _uses_wandb(logger):
        return None
    import wandb

    return wandb.run or _instantiated(logger, folder).experiment


@contextmanager
def closing_loggers(logger: DictConfig) -> Iterator[None]:
    """End the run of Weights & Biases after the block: otherwise the next run of a sweep would log into it."""
    try:
        yield
    finally:
        if _uses_wandb(logger) and "wandb" in sys.modules:  # else the command failed before there was a run
            sys.modules["wandb"].finish()


def _instantiated(logger: DictConfig, folder: RunFolder) -> Any:
    settings = OmegaConf.to_container(logger, resolve=True)
    assert isinstance(settings, dict)
    if _uses_wandb(logger):
        settings.setdefault("id", _wandb_id(folder))
        if not logger.offline:
            settings["resume"] = "allow"
    settings.pop("checkpoints", None)  # ours, not the logger's
    try:
        return instantiate(settings)
    except InstantiationException as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        tensorboard = "; pip install 'dlunet[tensorboard]'" if "TensorBoardLogger" in logger._target_ else ""
        raise UserError(f"logger: {logger._target_} is not installed ({error.__cause__}){tensorboard}") from None


def _wandb_id(folder: RunFolder) -> str:
    """The id of the run of Weights & Biases of a run folder, which is chosen once."""
    if not folder.wandb_id.exists() and rank() == 0:
        write_text(folder.wandb_id, secrets.token_hex(4))
    return folder.wandb_id.read_text() if folder.wandb_id.exists() else ""


def _uses_wandb(logger: DictConfig) -> bool:
    return "WandbLogger" in logger.get("_target_", "") and os.environ.get("WANDB_MODE") != "disabled"
