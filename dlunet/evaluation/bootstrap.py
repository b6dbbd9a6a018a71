"""Percentile bootstrap intervals: the same resamples for all values that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
#: With fewer units, intervals are too narrow: they miss the true mean clearly more often than once in twenty times.
FEW = 10
#: What is printed where there is no value.
NONE = "–"
#: The ends of a 95 % interval.
QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval from ``low`` to ``high``, which are NaN if there is none, as with one case."""

    value: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """Value and interval, each in the given format, such as ``0.812 [0.790, 0.831]``; a dash without one."""
        if math.isnan(self.value):
            return NONE
        value = f"{self.value:{form}}"
        return value if math.isnan(self.low) else f"{value} [{self.low:{form}}, {self.high:{form}}]"


def weights(generator: np.random.Generator, size: int) -> np.ndarray:
    """How often each of ``size`` units is drawn in each resample, as a fraction: an array (resamples, units)."""
    return np.asarray(generator.multinomial(size, np.full(size, 1 / size), RESAMPLES) / size)


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a statistic, from its values in the resamples."""
    low, high = np.quantile(resampled, QUANTILES)
    return float(low), float(high)
