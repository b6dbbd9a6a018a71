"""Learning rates as a function of how far a run is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The factor of the base learning rate."""

    def __call__(self, epoch: float, max_epochs: int) -> float:
        """The factor after ``epoch`` epochs, with fractions, of ``max_epochs``."""
        ...


@dataclass(frozen=True)
class Halving:
    """Halve the rate every so many epochs (DLUNet, Table 2)."""

    every: int = 200

    def __call__(self, epoch: float, max_epochs: int) -> float:
        """1, 1/2, 1/4, …"""
        return 0.5 ** (int(epoch) // self.every)


@dataclass(frozen=True)
class Poly:
    """nnU-Net's polynomial decay to 0, which the published code uses.

    Attributes:
        power: The exponent.
    """

    power: float = 0.9

    def __call__(self, epoch: float, max_epochs: int) -> float:
        """(1 − epoch / max_epochs)^power."""
        return max(0.0, 1 - epoch / max_epochs) ** self.power
