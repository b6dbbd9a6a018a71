"""Learning rates as a function of how far a run is."""

from __future__ import annotations

from collections.abc import Callable

#: ``(epochs done, with fractions; epochs in all) → factor of the base learning rate``
Schedule = Callable[[float, int], float]


def halving(every: int = 200) -> Schedule:
    """Halve the rate every so many epochs (DLUNet, Table 2)."""
    return lambda epoch, max_epochs: 0.5 ** (int(epoch) // every)


def poly(power: float = 0.9, warmup: float = 0.0) -> Schedule:
    """nnU-Net's polynomial decay to 0, which the published code uses.

    Args:
        power: The exponent.
        warmup: Epochs over which the rate first rises from 0.
    """

    def factor(epoch: float, max_epochs: int) -> float:
        rise = min(1.0, (epoch + 1e-3) / warmup) if warmup > 0 else 1.0
        return rise * max(0.0, 1 - epoch / max_epochs) ** power

    return factor
