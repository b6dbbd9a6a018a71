"""What networks return, as methods use it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def finest(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The finest logits (B, C, z, y, x) of a network that may return a level for each decoder stage."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def probabilities(outputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Softmax of the finest logits, (B, C, z, y, x), in float32 or wider."""
    logits = finest(outputs)
    return (logits if logits.dtype.itemsize > 2 else logits.float()).softmax(1)
