"""What a checkpoint says of itself: label set, plan and network, so that prediction needs nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from dlunet import __version__
from dlunet.errors import UserError
from dlunet.files import write_bytes
from dlunet.labels import LabelSet
from dlunet.networks.unet import LightUNet, PlainUNet, UNet
from dlunet.preparation import Plan

#: The key in a checkpoint under which the description lies.
KEY = "dlunet"

#: In the description of a checkpoint, what the names of the weights of the network that predicts begin with.
WEIGHTS = "weights"

#: The same in files of version 0.1, and in those that hold one network.
FIRST = "networks.0."

#: The version of the description. A file that says more than is known here is refused.
FORMAT = 1

#: The ending of a file that holds weights and nothing else.
SAFETENSORS = ".safetensors"

#: The networks that a checkpoint may name; nothing else is ever built from a file.
NETWORKS: dict[str, type[nn.Module]] = {"LightUNet": LightUNet, "PlainUNet": PlainUNet}

Network = TypeVar("Network", bound=type[nn.Module])


def register_network(network: Network) -> Network:
    """A decorator of a network's class: configs and checkpoints may name it as their ``kind``.

    It is called with ``in_channels``, ``num_classes`` and the other settings of its config, maps patches
    (B, in_channels, z, y, x) to logits (B, num_classes, z, y, x), in training mode also to a list of them, finest
    first, and may have a ``total_stride`` (z, y, x) of which patches have to be multiples.

    Raises:
        ValueError: Another network has this name.
    """
    known = NETWORKS.setdefault(network.__name__, network)
    if (known.__module__, known.__qualname__) != (network.__module__, network.__qualname__):
        raise ValueError(f"a network {network.__name__} is registered by {known.__module__}; choose another name")
    return network


@dataclass(frozen=True)
class Bundle:
    """A trained network with what is needed to use it.

    Attributes:
        network: The network that predicts; None where it exists only in the form of another engine.
        plan: How a CT is brought to what the network was trained on.
        labels: The organs it segments.
        digest: The same for the same weights.
        description: What :func:`describe` made.
    """

    network: nn.Module | None
    plan: Plan
    labels: LabelSet
    digest: str = ""
    description: dict[str, Any] = field(default_factory=dict)


def describe(network: dict[str, Any], plan: Plan, labels: LabelSet) -> dict[str, Any]:
    """The description stored beside the weights, in plain values.

    Args:
        network: The class name under ``kind`` and the arguments of its constructor.
        plan: The plan it was trained with.
        labels: The organs it segments.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "network": network,
        "plan": plan.to_dict(),
        "labels": labels.to_dict(),
    }


def build_network(description: dict[str, Any]) -> nn.Module:
    """A fresh network from its description.

    Raises:
        ValueError: The kind is unknown or the arguments do not fit.
    """
    arguments = dict(description)
    kind = arguments.pop("kind")
    if kind not in NETWORKS:
        raise ValueError(
            f"unknown kind of network {kind!r}; expected one of {', '.join(NETWORKS)}; where it is a plug-in: "
            "--config-dir=FOLDER"
        )
    return NETWORKS[kind](**arguments)


def load_bundle(path: Path) -> Bundle:
    """Load the network that predicts from a checkpoint, without running code from it.

    Raises:
        UserError: The file is missing, damaged, or not a checkpoint of this project.
    """
    values = read_safetensors(path) if path.suffix == SAFETENSORS else read_checkpoint(path)
    try:
        described = values[KEY]
        plan, labels = read_description(described)
        network = build_network(described["network"])
        prefix = described.get(WEIGHTS, FIRST)
        weights = {k.removeprefix(prefix): v for k, v in values["state_dict"].items() if k.startswith(prefix)}
        network.load_state_dict(weights)
        if isinstance(network, UNet):
            network.check_size(plan.patch_size)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: is not a usable DLUNet checkpoint ({type(error).__name__}: {reason}); expected one that training "
            "wrote, such as runs/…/checkpoints/best.ckpt"
        ) from None
    return Bundle(network.eval(), plan, labels, _digest(weights), described)


def read_description(described: dict[str, Any]) -> tuple[Plan, LabelSet]:
    """The plan and the labels of a description.

    Raises:
        KeyError, TypeError: It lacks something.
        ValueError: It is of a newer version, or contradicts itself.
    """
    if described.get("format", FORMAT) > FORMAT:
        raise ValueError(f"it was written by DLUNet {described['version']}, this is {__version__}: install a newer one")
    plan, labels = Plan.from_dict(described["plan"]), LabelSet.from_dict(described["labels"])
    if described["network"]["num_classes"] != labels.num_classes:
        raise ValueError(f"{described['network']['num_classes']} outputs for {labels.num_classes} classes")
    return plan, labels


def save_safetensors(bundle: Bundle, path: Path) -> None:
    """Write the network that predicts, with its description, as a .safetensors file."""
    assert bundle.network is not None
    weights = {name: value.contiguous() for name, value in bundle.network.state_dict().items()}
    write_bytes(path, safetensors.torch.save(weights, {KEY: json.dumps(bundle.description)}))


def read_safetensors(path: Path) -> dict[str, Any]:
    """The values of a .safetensors file, arranged as in a checkpoint.

    Raises:
        UserError: The file is missing, damaged, or not one of this project.
    """
    _check_exists(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})[KEY])
            prefix = described.get(WEIGHTS, FIRST)
            weights = {f"{prefix}{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({error}); expected one that `dlunet export` wrote"
        ) from None
    return {KEY: described, "state_dict": weights}


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; expected a file such as runs/…/checkpoints/best.ckpt")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The values of a checkpoint file, tensors on the CPU.

    Raises:
        UserError: The file is missing or is not a checkpoint.
    """
    _check_exists(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way: IndexError, struct.error, AssertionError, …
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({reason}); expected one that training wrote"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a checkpoint: found a {type(values).__name__}, expected a dictionary")
    return values
