"""Learning rate schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """Computes the factor of the base learning rate."""

    def __call__(self, epoch: float, max_epochs: int) -> float:
        """The factor after ``epoch`` (fractional) of ``max_epochs`` epochs."""
        ...


@dataclass(frozen=True)
class Halving:
    """Halve the learning rate every n epochs (DLUNet, Table 2).

    Attributes:
        every: The number of epochs n.
    """

    every: int = 200

    def __call__(self, epoch: float, max_epochs: int) -> float:
        """1, 1/2, 1/4, …"""
        return 0.5 ** (int(epoch) // self.every)


@dataclass(frozen=True)
class Poly:
    """nnU-Net's polynomial decay to 0, as used by the published code.

    Attributes:
        power: The exponent.
    """

    power: float = 0.9

    def __call__(self, epoch: float, max_epochs: int) -> float:
        """(1 − epoch / max_epochs)^power."""
        return max(0.0, 1 - epoch / max_epochs) ** self.power
