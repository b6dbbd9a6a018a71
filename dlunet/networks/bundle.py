"""What a checkpoint says of itself: label set, plan and network, so that prediction needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dlunet import __version__
from dlunet.labels import LabelSet
from dlunet.preparation import Plan

#: The key in a checkpoint under which the description lies.
KEY = "dlunet"

#: In the description of a checkpoint, what the names of the weights of the network that predicts begin with; a list for
#: the members of an ensemble.
WEIGHTS = "weights"

#: The same in files of version 0.1, and in those that hold one network.
FIRST = "networks.0."

#: The version of the description. A file that says more than is known here is refused.
FORMAT = 1


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
