"""The allowed values of settings, checked before any work begins, so that a typo costs only seconds."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from dlunet.errors import UserError
from dlunet.shards import is_shard


def _whole(value: Any, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _number(value: Any, above: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and above < value < math.inf


def _triple(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, ListConfig) and len(value) == 3 and all(map(fits, value))


def _devices(value: Any) -> bool:
    """A number, -1 or ``auto`` for all, or a list of numbers, also as text: ``0,1``."""
    numbers = value.split(",") if isinstance(value, str) else value if isinstance(value, ListConfig) else None
    if numbers is None:
        return value == -1 or _whole(value, 1)
    return value in ("auto", "-1") or (
        len(numbers) > 0 and all(str(number).strip().isdecimal() for number in numbers) and value != "0"
    )


Rule = tuple[Callable[[Any], bool], str]

COUNT: Rule = (lambda value: _whole(value, 1), "a whole number, 1 or more")
COUNT_OR_NONE: Rule = (lambda value: _whole(value, 0), "a whole number, 0 or more")
POSITIVE: Rule = (lambda value: _number(value, 0), "a number above 0")
NOT_NEGATIVE: Rule = (lambda value: _number(value, -1e-9), "a number, 0 or more")
FRACTION: Rule = (lambda value: _number(value, -1e-9) and value <= 1, "a number from 0 to 1")
ABOVE_ZERO: Rule = (lambda value: _number(value, 0) and value <= 1, "a number greater than 0, at most 1")
BELOW_ONE: Rule = (lambda value: _number(value, -1e-9) and value < 1, "a number of at least 0 and less than 1")
FOLDERS: Rule = (lambda value: not isinstance(value, ListConfig) or len(value) > 0, "at least one folder")
SWITCH: Rule = (lambda value: isinstance(value, bool), "true or false")

#: Settings for which null has a meaning.
MAY_BE_NULL = (
    "checkpoint.every_n_steps",
    "checkpoint.every_n_minutes",
    "data.workers",
    "plan.patch_size",
    "plan.spacing",
    "resume",
    "sampling.num_workers",
    "shard",
    "table",
)

#: The rules of settings. Those that a command does not have are not checked.
RULES: dict[str, Rule] = {
    "data.workers": COUNT,
    "data.folds": (lambda value: _whole(value, 2), "a whole number, 2 or more; data.fold=all turns validation off"),
    "plan.spacing": (
        lambda value: _triple(value, lambda mm: _number(mm, 0)),
        "three numbers above 0: z, y, x in mm, such as [2.5,1.5,1.5]",
    ),
    "plan.patch_size": (
        lambda value: _triple(value, lambda voxels: _whole(voxels, 1)),
        "three whole numbers, 1 or more: voxels along z, y, x, such as [56,160,160]",
    ),
    "plan.memory_gb": POSITIVE,
    "checkpoint.every_n_steps": COUNT,
    "checkpoint.every_n_minutes": POSITIVE,
    "checkpoint.on_full": (lambda value: value in ("stop", "continue"), "stop or continue"),
    "sampling.batch_size": COUNT,
    "sampling.accumulate_grad_batches": COUNT,
    "sampling.steps_per_epoch": COUNT,
    "sampling.num_workers": COUNT_OR_NONE,
    "sampling.foreground_fraction": FRACTION,
    "augmentation.affine_probability": FRACTION,
    "trainer.max_epochs": COUNT,
    "trainer.check_val_every_n_epoch": COUNT,
    "optimizer.algorithm.lr": POSITIVE,
    "optimizer.gradient_clip": POSITIVE,
    "method.unlabelled_weight": NOT_NEGATIVE,
    "method.consistency_weight": NOT_NEGATIVE,
    "method.entropy_weight": NOT_NEGATIVE,
    "method.threshold": FRACTION,
    "method.ramp": FRACTION,
    "method.decay": BELOW_ONE,
    "method.strong": SWITCH,
    "method.noise": NOT_NEGATIVE,
    "method.passes": COUNT,
    "method.window": COUNT,
    "method.dropout": BELOW_ONE,
    "method.cut_mix_probability": FRACTION,
    "method.box": ABOVE_ZERO,
    "method.num_boxes": COUNT_OR_NONE,
    "method.supervised_epochs": COUNT_OR_NONE,
    "seed": (lambda value: _whole(value, 0) and value < 2**32, "a whole number from 0 to 4294967295"),
    "resume": (lambda value: value == "auto", "auto, or null"),
    "table": (lambda value: value in (3, 4, 5, 6, 7, "methods"), "a whole number from 3 to 7, methods, or null"),
    "rounds": COUNT,
    "agreement": FRACTION,
    "logger.checkpoints": SWITCH,
    "trainer.devices": (_devices, "a number of devices, a list of them, such as [0,1], or auto for all"),
    "trainer.num_nodes": COUNT,
    "shard": (is_shard, "K/N, the K-th of N shards, such as 2/8"),
    "sampling.repeat": SWITCH,
    "strict": SWITCH,
    "dry_run": SWITCH,
    "tile_step": ABOVE_ZERO,
    "flips": (lambda value: value in ("none", "axes", "full"), "none, axes, full"),
    "volumes": SWITCH,
    "overlay": SWITCH,
    "report": SWITCH,
    "test": SWITCH,
    "runs": FOLDERS,
    "predictions": FOLDERS,
}

#: Files and folders; an empty one, as of a shell variable that is not set, would be the current folder.
PATHS = ("checkpoint", "input", "output", "data.root", "predictions", "references", "runs")

#: Lightning's own ways to end an epoch early would leave out its last patches, and a resumed run repeat others.
_ENDS_EARLY = "which would end an epoch before its last step"

#: Lightning does not know how gradients are computed here: by a method, network by network.
_OF_GRADIENTS = "which Lightning cannot apply to the gradients of a method"

#: Arguments of Lightning's trainer that contradict settings of ours: why, and what to use instead.
INSTEAD = {
    "limit_train_batches": (_ENDS_EARLY, "sampling.steps_per_epoch"),
    "overfit_batches": (_ENDS_EARLY, "debug=overfit"),
    "fast_dev_run": (_ENDS_EARLY, "debug=fast"),
    "max_steps": (_ENDS_EARLY, "trainer.max_epochs"),
    "max_time": (_ENDS_EARLY, "trainer.max_epochs, or a signal: timeout 12h dlunet train …"),
    "accumulate_grad_batches": (_OF_GRADIENTS, "sampling.accumulate_grad_batches"),
    "gradient_clip_val": (_OF_GRADIENTS, "optimizer.gradient_clip"),
}

#: The parts of a config that must not be null.
PARTS = sorted({name.rpartition(".")[0] for name in RULES} - {""} | {"optimizer.schedule"})


def check_config(config: DictConfig) -> None:
    """Check as much of a command's config as is possible before any work begins.

    Raises:
        UserError: A setting is missing or invalid, or the output folder cannot be created.
    """
    # Not resolved: a setting that refers to a missing one is not missing itself.
    settings = flattened(OmegaConf.to_container(config, resolve=False))
    missing = [name for name, value in settings.items() if value == "???" or (value == "" and name in PATHS)]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; add {missing[0]}=… to the command")
    check_settings(config)
    if config.get("output") is not None:
        _check_output(config.output)


def check_settings(config: DictConfig) -> None:
    """Check every setting in :data:`RULES`, and those that contradict each other.

    Raises:
        UserError: A setting is invalid.
    """
    if isinstance(given := config.get("checkpoint"), ListConfig):
        raise UserError(
            f"checkpoint: found a list of {len(given)}; expected one file or folder: the networks of several folds are "
            "not averaged"
        )
    for part in PARTS:
        if OmegaConf.select(config, part, default=...) is None:
            raise UserError(f"{part}: found null; expected its settings; leave it out for the default")
    for name, (fits, expected) in RULES.items():
        value = OmegaConf.select(config, name, default=...)
        is_exempt = value is ... or (value is None and name in MAY_BE_NULL)
        if not is_exempt and not fits(value):
            raise UserError(f"{name}: found {value}; expected {expected}")
    _check_trainer(config)
    _check_unlabelled_part(config)
    _check_other_network(config)


def _check_trainer(config: DictConfig) -> None:
    for name, (why, instead) in INSTEAD.items():
        if (value := OmegaConf.select(config, f"trainer.{name}")) is not None:
            raise UserError(f"trainer.{name}: found {value}, {why}; use {instead}")


def _check_unlabelled_part(config: DictConfig) -> None:
    """A run that was made shorter may end before its unlabelled part begins."""
    on_labels = OmegaConf.select(config, "method.supervised_epochs", default=0)
    if on_labels and on_labels >= (epochs := config.trainer.max_epochs):
        raise UserError(
            f"trainer.max_epochs: found {epochs}, of which {on_labels} are on labels alone (method.supervised_epochs); "
            f"expected more, or unlabelled cases would never be used; add scale.supervised_epochs={epochs // 6}"
        )


def _check_other_network(config: DictConfig) -> None:
    """Networks of different kinds teach each other because they make different errors."""
    other = OmegaConf.select(config, "other_network")
    if other is not None and other == config.network:
        raise UserError(
            f"other_network: found {other.kind}, as in network; expected a network of another kind; choose it with "
            "network@other_network=…, or let equal networks teach each other: method=cross_pseudo"
        )


def unused_of_recipe(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Those overrides of ``recipe`` that nothing in the config refers to: method and scale may have their own values.

    Args:
        config: The composed config, its references not resolved.
        overrides: Those of the command line.
    """
    unresolved = str(OmegaConf.to_container(config, resolve=False))
    given = [word for word in overrides if word.startswith("recipe.")]
    return [word for word in given if f"${{{word.partition('=')[0]}}}" not in unresolved]


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _check_output(output: str) -> None:
    """Check that the output folder can be created; it is created once there is a result."""
    folder = Path(output)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise UserError(
            f"output={output}: cannot create directory: {existing} is not a directory; choose another output"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"output={output}: cannot create directory: {existing} is not writable; choose another output")
