"""Build the training module from a config: networks, method, losses, optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from dlunet.errors import UserError
from dlunet.labels import LabelSet
from dlunet.losses import loss_at
from dlunet.methods import Fixed, Method, Trained, check_untrained, method_of
from dlunet.networks import Bundle, build_network, load_bundle
from dlunet.preparation import Plan
from dlunet.sampling import Augmentation
from dlunet.settings import flattened
from dlunet.training.module import SegmentationModule
from dlunet.training.schedules import Schedule


def build_module(config: DictConfig, plan: Plan, labels: LabelSet) -> SegmentationModule:
    """Build the training module of a config.

    Args:
        config: The config of a training.
        plan: The plan of the prepared cases.
        labels: The classes.

    Raises:
        UserError: A network cannot be built, or does not fit the labels or the patch size.
    """
    method = method_of(config)
    networks, descriptions = build_networks(config, method, labels, plan.patch_size)
    return SegmentationModule(
        networks=networks,
        network_description=_description_of_prediction(method, descriptions),
        method=method,
        **losses_of(config),
        optimizer=optimizer_of(config),
        schedule=schedule_of(config),
        gradient_clip=config.optimizer.gradient_clip,
        plan=plan,
        labels=labels,
        seed=config.seed,
        accumulate=config.sampling.accumulate_grad_batches,
        mirrored=_is_mirrored(config),
    )


def build_networks(
    config: DictConfig, method: Method, labels: LabelSet, patch_size: Sequence[int]
) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """Build the trained networks of a method and load the fixed ones.

    Args:
        config: The config of a training, with a complete plan.
        method: The method.
        labels: The classes.
        patch_size: Voxels along z, y, x.

    Returns:
        The networks and their descriptions, by role.

    Raises:
        UserError: A network cannot be built, or does not fit the labels or the patch size.
    """
    classes = {"num_classes": labels.num_classes}
    descriptions = {role: {**plain(network_config(config, kind)), **classes} for role, kind in method.trained.items()}
    networks = {role: _build_network(description) for role, description in descriptions.items()}
    for network in networks.values():
        _check_patch(network, patch_size)
    for role, kind in method.fixed.items():
        bundle = _load_fixed(kind, labels)
        assert bundle.network is not None
        networks[role], descriptions[role] = bundle.network, bundle.description["network"]
    return networks, descriptions


def _is_mirrored(config: DictConfig) -> bool | None:
    """Whether patches are mirrored; None for an augmentation of one's own, which may do so in any way."""
    is_ours = config.augmentation._target_ == f"dlunet.sampling.{Augmentation.__name__}"
    return config.augmentation.get("flip") is not None if is_ours else None


def check_parts(config: DictConfig, num_classes: int) -> None:
    """Build method, losses, optimiser, schedule, augmentation and callbacks; try some of them on something small.

    Preparing the cases may take hours; settings that cannot be used are found before.

    Args:
        config: The config of a training.
        num_classes: The number of classes, background included.

    Raises:
        UserError: A part does not accept its settings.
    """
    epochs = config.trainer.max_epochs
    method = method_of(config)
    method.setup(num_classes)
    check_untrained("method", method)
    logits, target = torch.zeros(1, num_classes, 16, 16, 16), torch.zeros(1, 16, 16, 16, dtype=torch.long)
    for name, loss in losses_of(config).items():
        check_untrained(name, loss)
        with _naming(config, name):
            for of_epoch in {loss_at(loss, 0), loss_at(loss, epochs)}:
                of_epoch(logits, target)
    make, schedule = optimizer_of(config), schedule_of(config)
    with _naming(config, "optimizer.algorithm"):
        make([nn.Parameter(torch.zeros(1))])
    with _naming(config, "optimizer.schedule"):
        factors = [schedule(epoch, epochs) for epoch in (0.0, epochs / 2, float(epochs))]
        if not all(0 <= factor < math.inf for factor in factors):
            raise ValueError(f"gives the factors {factors}; expected numbers of at least 0")
    augmentation_of(config)
    callbacks_of(config)


def losses_of(config: DictConfig) -> dict[str, nn.Module]:
    """The losses for labels and for pseudo-labels, as arguments of the training module.

    Raises:
        UserError: A loss does not accept its settings.
    """
    return {name: _instantiated(config, name) for name in ("loss", "pseudo_loss")}


def optimizer_of(config: DictConfig) -> Callable[..., Optimizer]:
    """The optimiser, which is made from parameters."""
    return cast(Callable[..., Optimizer], _instantiated(config, "optimizer.algorithm"))


def schedule_of(config: DictConfig) -> Schedule:
    """The schedule of the learning rate."""
    return cast(Schedule, _instantiated(config, "optimizer.schedule"))


def augmentation_of(config: DictConfig) -> Augmentation:
    """The augmentation of patches.

    Raises:
        UserError: It does not accept its settings.
    """
    return cast(Augmentation, _instantiated(config, "augmentation"))


def callbacks_of(config: DictConfig) -> dict[str, Callback]:
    """The callbacks that the config adds, by name.

    Raises:
        UserError: One does not accept its settings.
    """
    return {name: cast(Callback, _instantiated(config, f"callbacks.{name}")) for name in config.callbacks or {}}


def _instantiated(config: DictConfig, name: str) -> Any:
    with _naming(config, name):
        return instantiate(OmegaConf.select(config, name), _convert_="all")


@contextmanager
def _naming(config: DictConfig, name: str) -> Iterator[None]:
    """Turn an error of a part of a config into one that names the part and its settings."""
    try:
        yield
    except (InstantiationException, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        reason = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        settings = flattened(OmegaConf.to_container(OmegaConf.select(config, name), resolve=True))
        shown = {key: value for key, value in settings.items() if not key.split(".")[-1].startswith("_")}
        found = ", ".join(f"{key}={value}" for key, value in shown.items() if "_target_" not in str(value))
        raise UserError(f"{name}: {reason}; check its settings: {found}") from None


def _description_of_prediction(method: Method, descriptions: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The description of the predicting network, or of the ensemble of several."""
    sources = [method.averaged[role].of if role in method.averaged else role for role in method.predicting]
    first, *others = members = [descriptions[role] for role in sources]
    return {"kind": "Ensemble", "members": members, "num_classes": first["num_classes"]} if others else first


def network_config(config: DictConfig, trained: Trained) -> DictConfig:
    """The part of a config that describes a network trained by its method.

    Raises:
        UserError: The config has no network of this name.
    """
    if trained.config not in config:
        raise UserError(
            f"method: trains a network described by {trained.config}, but the config has no {trained.config}; add "
            f"- /network@_global_.{trained.config}: plain to the defaults of the method's config"
        )
    return config[trained.config]


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as plain dictionaries and lists, with references resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _build_network(description: dict[str, Any]) -> nn.Module:
    try:
        return build_network(description)
    except (TypeError, ValueError) as error:
        raise UserError(f"network: {error}; check the network settings") from None


def _load_fixed(fixed: Fixed, labels: LabelSet) -> Bundle:
    bundle = load_bundle(Path(fixed.checkpoint))
    if bundle.labels != labels:
        raise UserError(
            f"{fixed.checkpoint}: segments {', '.join(label.name for label in bundle.labels)}; expected the labels of "
            f"the dataset: {', '.join(label.name for label in labels)}"
        )
    return bundle


def _check_patch(network: nn.Module, patch_size: Sequence[int]) -> None:
    total_stride = getattr(network, "total_stride", (1, 1, 1))
    if any(size % step for size, step in zip(patch_size, total_stride, strict=True)):
        raise UserError(
            f"plan.patch_size: found {list(patch_size)}; expected multiples of the network's total stride "
            f"{list(total_stride)}"
        )
