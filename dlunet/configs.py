"""Composing configs: the location of ``conf/``, its custom resolvers, and composition from Python."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlunet.errors import UserError
from dlunet.execution import EXECUTION
from dlunet.overrides import quote_literals
from dlunet.parallel import available_cores
from dlunet.plugins import load_plugins, search_path, take_folder

PACKAGE = Path(__file__).parent
#: The configs are inside the package in a wheel, and beside it in a checkout.
CONFIGS = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

#: Weights & Biases' own variable: online, offline or disabled.
WANDB_MODE = "WANDB_MODE"

#: How overrides begin that determine how and where a run is executed, not what is trained: with others of them, a sweep
#: is resumed in the same folders.
RUN_SETTINGS = (*EXECUTION, "callback=", "data", "launcher", "scale", "sweep", "trainer.")

#: Characters of overrides that are replaced in the name of a folder.
FOR_FOLDERS = str.maketrans({",": "-", "/": "_", "'": None, '"': None})

#: CPU cores of a run where several run at once.
CORES_A_RUN = 2

#: The parts of an experiment, in the order in which they appear in its name.
PARTS = ("method", "network", "loss")

#: Optional parts of an experiment; they appear in its name only if chosen on the command line.
FURTHER_PARTS = ("pseudo_loss", "recipe", "network@other_network")


def compose(verb: str, settings: Sequence[str] = (), plugins: Path | str | None = None) -> DictConfig:
    """The config of a command, composed as on the command line.

    Args:
        verb: The command, such as ``train`` or ``predict``.
        settings: Overrides as on the command line, such as ``["experiment=ssl_light", "scale=tiny"]``.
        plugins: A folder with your own configs and Python files, see ``docs/extending.md``.

    Raises:
        UserError: The plug-in folder cannot be used, or a setting does not exist.
    """
    _, folder = take_folder([] if plugins is None else [f"--config-dir={plugins}"])
    words = quote_literals(settings, sweep=False)
    if folder is not None:
        load_plugins(folder)
        words = [search_path(folder), *words]
    register_resolvers()
    words = with_default_scale(verb, words)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = hydra.compose(verb, words, return_hydra_config=True)
    except CompactHydraException as error:
        raise UserError(in_short(error)) from None
    return without_hydra(config)


def in_short(error: Exception) -> str:
    """Hydra's message without the parts that are of no use to users."""
    lines = str(error).partition("Config search path")[0].splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.startswith(("To append", "See http")))


def without_hydra(config: DictConfig) -> DictConfig:
    """The config without Hydra's node, with its name resolved from the choices recorded in that node."""
    OmegaConf.set_struct(config, False)
    if "name" in config:
        config.name = config.name  # resolved while the node still records the choices
    del config["hydra"]
    return config


def register_resolvers(swept: Collection[str] = ()) -> None:
    """Register the OmegaConf resolvers used by the configs.

    Args:
        swept: The settings that the command line sweeps over, see :func:`swept_settings`.
    """
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("readable", partial(_readable_name, swept), replace=True)
    OmegaConf.register_new_resolver("stem", _folder_stem, replace=True)
    OmegaConf.register_new_resolver("runs_at_once", _runs_at_once, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", lambda: os.environ.get(WANDB_MODE) != "online", replace=True)


def _runs_at_once() -> int:
    """How many runs of a sweep this machine has room for."""
    import torch  # only here, see with_default_scale

    return torch.cuda.device_count() or max(1, available_cores() // CORES_A_RUN)


def swept_settings(arguments: Sequence[str]) -> set[str]:
    """The settings with several values among the arguments of a command line."""
    return {override.key_or_group for override in _parsed(arguments) if override.is_sweep_override()}


def choices_that_are_no_names(arguments: Sequence[str]) -> list[str]:
    """The arguments that choose something other than a name, such as ``loss=null``, which Hydra fails on."""
    return [
        str(override.input_line)
        for override in _parsed(arguments)
        if (CONFIGS / override.key_or_group).is_dir()
        and not override.is_delete()
        and not override.is_sweep_override()
        and not isinstance(override.value(), str | list)
    ]


def _parsed(arguments: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides([word for word in arguments if _is_override(word)])
    except CompactHydraException:  # the command itself fails on it too, and reports it
        return []


def _is_override(argument: str) -> bool:
    return "=" in argument and not argument.startswith("-")


def _readable_name(swept: Collection[str], overrides: Sequence[str], *, _root_: DictConfig) -> str:
    """A folder name from the overrides of a run of a sweep, such as ``ssl_light_seed1``.

    It has no number, so that a sweep with more seeds finds the runs that it has. Of :data:`RUN_SETTINGS` it contains
    those that the sweep varies.
    """
    varied = {*swept, *(_root_.hydra.sweeper.params or {})}
    settings = {word.lstrip("+").partition("=")[0]: word.lstrip("+") for word in overrides}
    told = [word for key, word in sorted(settings.items()) if key in varied or not word.startswith(RUN_SETTINGS)]
    # Avoid characters that would need quoting on a command line, or that separate folders.
    words = [word.removeprefix("experiment=").replace("=", "").translate(FOR_FOLDERS) for word in told]
    return "_".join(words) or "run"


def _run_folder(single: str) -> str:
    """The output folder of a run: Hydra's folder for the job in a sweep, else ``single``."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    return HydraConfig.get().runtime.output_dir if in_sweep else single


def _run_name(experiment: str, *, _root_: DictConfig) -> str:
    """The experiment's name, or the names of its parts where the command line replaces one of them."""
    if "hydra" in _root_:
        composed = _root_.hydra
    elif HydraConfig.initialized():
        composed = HydraConfig.get()
    else:
        return experiment
    chosen = {word.lstrip("+").partition("=")[0] for word in composed.overrides.task}
    further = [part for part in FURTHER_PARTS if part in chosen]
    if not further and not chosen & set(PARTS):
        return experiment
    return "-".join(composed.runtime.choices[part] for part in (*PARTS, *further))


def _folder_stem(root: str) -> str:
    """The name of a folder, such as ``Dataset042_Spleen``, made safe for use in another folder's name."""
    return re.sub(r"[^\w.-]+", "-", Path(root).resolve().name)


def with_default_scale(verb: str, arguments: list[str]) -> list[str]:
    """Choose the scale to suit the machine where the user did not."""
    if verb not in ("train", "prepare", "doctor", "self_train") or any(
        argument.startswith("scale=") for argument in arguments
    ):
        return arguments
    import torch  # only here: processes that score cases import this module, and would all load it

    scale = f"scale={_gpu_scale(verb, arguments) if torch.cuda.is_available() else 'cpu'}"
    # Hydra requires the overrides to be contiguous; flags may come before or after them.
    first = next((k for k, word in enumerate(arguments) if _is_override(word)), len(arguments))
    return [*arguments[:first], scale, *arguments[first:]]


def _gpu_scale(verb: str, arguments: list[str]) -> str:
    """The GPU scale named by the chosen dataset's config; in a sweep, by that of the first run."""
    words = [word for word in arguments if _is_override(word)]
    _, plug_ins = take_folder(arguments)
    if plug_ins is not None:
        words.append(search_path(plug_ins))
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        first_run = [
            f"{word.get_key_element()}={next(word.sweep_string_iterator())}" if word.is_sweep_override() else text
            for word, text in zip(parsed, words, strict=True)
        ]
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose(verb, first_run).data.get("gpu_scale", "auto")
    except CompactHydraException:  # the command itself fails on it too, and reports it
        return "auto"
