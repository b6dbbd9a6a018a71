"""The networks that a config or a checkpoint may name, and building one from its description."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from dlunet.networks.unet import LightUNet, PlainUNet

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
        raise ValueError(
            f"a network {network.__name__} is already registered by {known.__module__}; choose another name"
        )
    return network


def build_network(description: dict[str, Any]) -> nn.Module:
    """A fresh network from its description.

    Raises:
        ValueError: The kind is unknown or the arguments do not fit.
    """
    arguments = dict(description)
    kind = arguments.pop("kind")
    if kind not in NETWORKS:
        raise ValueError(
            f"unknown kind of network {kind!r}; expected one of {', '.join(NETWORKS)}; if it is a plug-in, add "
            "--config-dir=FOLDER"
        )
    return NETWORKS[kind](**arguments)
