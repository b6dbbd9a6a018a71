"""The description in a checkpoint: label set, plan and network, so that prediction needs no other file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dlunet import __version__
from dlunet.labels import LabelSet
from dlunet.preparation import Plan

#: The checkpoint key of the description.
KEY = "dlunet"

#: The description key of the prefix of the predicting network's weights in the state dict; for an ensemble, a list.
WEIGHTS = "weights"

#: The description key that says whether it was trained with mirrored patches, if known.
MIRRORED = "mirrored"

#: That prefix in files of version 0.1 and in files with a single network.
FIRST = "networks.0."

#: The version of the description format. Files with a newer version are refused.
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A trained network with its plan and labels.

    Attributes:
        network: The network that predicts; None if it was exported in the format of another engine.
        plan: How a CT is converted to the network's input.
        labels: The classes it segments.
        digest: Checksum of the weights.
        description: The result of :func:`describe`.
    """

    network: nn.Module | None
    plan: Plan
    labels: LabelSet
    digest: str = ""
    description: dict[str, Any] = field(default_factory=dict)


def describe(network: dict[str, Any], plan: Plan, labels: LabelSet, mirrored: bool | None = None) -> dict[str, Any]:
    """The description stored with the weights, as plain values.

    Args:
        network: The class name under ``kind`` and the arguments of its constructor.
        plan: The plan it was trained with.
        labels: The classes it segments.
        mirrored: Whether it was trained with mirrored patches, as test-time flips require; None if unknown.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "network": network,
        "plan": plan.to_dict(),
        "labels": labels.to_dict(),
        **({} if mirrored is None else {MIRRORED: mirrored}),
    }


def read_description(described: dict[str, Any]) -> tuple[Plan, LabelSet]:
    """The plan and the labels of a description.

    Raises:
        KeyError, TypeError: It is incomplete.
        ValueError: It is of a newer version or inconsistent.
    """
    if described.get("format", FORMAT) > FORMAT:
        raise ValueError(f"it was written by DLUNet {described['version']}, this is {__version__}: install a newer one")
    plan, labels = Plan.from_dict(described["plan"]), LabelSet.from_dict(described["labels"])
    if described["network"]["num_classes"] != labels.num_classes:
        raise ValueError(f"{described['network']['num_classes']} outputs for {labels.num_classes} classes")
    return plan, labels
