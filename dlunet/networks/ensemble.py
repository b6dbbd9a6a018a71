"""An ensemble of networks, which predict together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dlunet.networks.registry import build_network, register_network


@register_network
class Ensemble(nn.Module):
    """The mean of the logits of several networks, for methods with several predicting roles.

    Args:
        members: The description of each network, see :func:`dlunet.networks.build_network`.
        num_classes: Of all of them, background included.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]], num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.members = nn.ModuleList(build_network(dict(member)) for member in members)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (B, in_channels, z, y, x) to logits (B, num_classes, z, y, x); in evaluation mode only."""
        return mean_logits(self.members, patches)


def mean_logits(networks: Iterable[Callable[[Tensor], Tensor]], patches: Tensor) -> Tensor:
    """The mean of the logits of networks, each in evaluation mode."""
    return torch.stack([network(patches) for network in networks]).mean(0)
