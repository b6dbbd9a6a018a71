"""Ramp-up of loss weights over a run."""

from __future__ import annotations

import math


def sigmoid_ramp(fraction: float, length: float) -> float:
    """exp(−5(1 − t)²) with t = fraction / length, up to 1 (Laine and Aila 2017, arXiv 1610.02242, section 3.1).

    Args:
        fraction: The completed fraction of the run.
        length: The fraction of the run over which the weight rises; 0: it is 1 from the start.
    """
    t = min(fraction / length, 1.0) if length > 0 else 1.0
    return math.exp(-5 * (1 - t) ** 2)
