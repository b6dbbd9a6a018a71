"""The registry of networks that configs and checkpoints may name; builds a network from its description."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from dlunet.errors import UserError
from dlunet.networks.unet import LightUNet, PlainUNet
from dlunet.plugins import is_another

#: The networks that a checkpoint may name; no other class is ever built from a file.
NETWORKS: dict[str, type[nn.Module]] = {"LightUNet": LightUNet, "PlainUNet": PlainUNet}

Network = TypeVar("Network", bound=type[nn.Module])


def register_network(network: Network) -> Network:
    """A class decorator for networks: configs and checkpoints may name the class as their ``kind``.

    The class is called with ``in_channels``, ``num_classes`` and the other settings of its config. It maps patches
    (B, in_channels, z, y, x) to logits (B, num_classes, z, y, x), or, in training mode, to a list of logits, finest
    first. It may have a ``total_stride`` (z, y, x) of which patch sizes must be multiples.

    Raises:
        ValueError: Another network is registered under this name.
    """
    known = NETWORKS.setdefault(network.__name__, network)
    if is_another(known, network):
        raise ValueError(
            f"a network {network.__name__} is already registered by {known.__module__}; choose another name"
        )
    return network


def build_network(description: dict[str, Any]) -> nn.Module:
    """A new network from its description.

    Raises:
        ValueError: The kind is unknown or the arguments do not fit.
    """
    arguments = dict(description)
    kind = arguments.pop("kind", None)
    if kind not in NETWORKS:
        raise ValueError(
            f"unknown kind of network {kind!r}; expected one of {', '.join(NETWORKS)}; if it is a plug-in, add "
            "--config-dir=FOLDER"
        )
    return NETWORKS[kind](**arguments)


def check_logits(who: str, logits: Tensor, patches: Tensor, num_classes: int) -> None:
    """Check the shape of logits: neither a loss nor an argmax would notice channels without a class.

    Args:
        who: The network or engine, for the message.
        logits: What it returned.
        patches: What it was given, (B, channels, z, y, x).
        num_classes: Background included.

    Raises:
        UserError: The shape is not (B, num_classes, z, y, x).
    """
    expected = (len(patches), num_classes, *patches.shape[2:])
    if tuple(logits.shape) != expected:
        raise UserError(
            f"{who}: found logits of shape {tuple(logits.shape)}; expected {expected}, as (batch, classes, z, y, x) of "
            "its input"
        )
