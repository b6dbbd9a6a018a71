"""What a checkpoint says of itself: label set, plan and network, so that prediction needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dlunet import __version__
from dlunet.errors import UserError
from dlunet.labels import LabelSet
from dlunet.networks.unet import LightUNet, PlainUNet, UNet
from dlunet.preparation import Plan

#: The key in a checkpoint under which the description lies.
KEY = "dlunet"

#: The networks that a checkpoint may name; nothing else is ever built from a file.
NETWORKS: dict[str, type[UNet]] = {"LightUNet": LightUNet, "PlainUNet": PlainUNet}


@dataclass(frozen=True)
class Bundle:
    """A trained network with what is needed to use it."""

    network: UNet
    plan: Plan
    labels: LabelSet


def describe(network: dict[str, Any], plan: Plan, labels: LabelSet) -> dict[str, Any]:
    """The description stored beside the weights, in plain values.

    Args:
        network: The class name under ``kind`` and the arguments of its constructor.
        plan: The plan it was trained with.
        labels: The organs it segments.
    """
    return {"version": __version__, "network": network, "plan": plan.to_dict(), "labels": labels.to_dict()}


def build_network(description: dict[str, Any]) -> UNet:
    """A fresh network from its description.

    Raises:
        ValueError: The kind is unknown or the arguments do not fit.
    """
    arguments = dict(description)
    kind = arguments.pop("kind")
    if kind not in NETWORKS:
        raise ValueError(f"unknown kind of network {kind!r}; expected one of {', '.join(NETWORKS)}")
    return NETWORKS[kind](**arguments)


def load_bundle(path: Path) -> Bundle:
    """Load the network that predicts from a checkpoint, without running code from it.

    Raises:
        UserError: The file is missing, damaged, or not a checkpoint of this project.
    """
    values = read_checkpoint(path)
    try:
        described = values[KEY]
        network = build_network(described["network"])
        prefix = "networks.0."
        weights = {k.removeprefix(prefix): v for k, v in values["state_dict"].items() if k.startswith(prefix)}
        network.load_state_dict(weights)
        plan, labels = Plan.from_dict(described["plan"]), LabelSet.from_dict(described["labels"])
        if described["network"]["num_classes"] != labels.num_classes:
            raise ValueError(f"{described['network']['num_classes']} outputs for {labels.num_classes} classes")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: is not a usable DLUNet checkpoint ({type(error).__name__}: {reason}); expected one that training "
            "wrote, such as runs/…/checkpoints/best.ckpt"
        ) from None
    return Bundle(network.eval(), plan, labels)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The values of a checkpoint file, tensors on the CPU.

    Raises:
        UserError: The file is missing or is not a checkpoint.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; expected a file such as runs/…/checkpoints/best.ckpt")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way: IndexError, struct.error, AssertionError, …
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({reason}); expected one that training wrote"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a checkpoint: found a {type(values).__name__}, expected a dictionary")
    return values
