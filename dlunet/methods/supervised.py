"""Supervised training on labelled patches only."""

from __future__ import annotations

from dlunet.methods.base import Method, Step, Stream, Terms, with_averages


class Supervised(Method):
    """One network, trained on labelled patches.

    Args:
        decay: With a decay, the moving average of the network predicts; 0: the network itself does.
    """

    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def __init__(self, decay: float = 0.0) -> None:
        super().__init__()
        self.networks, (self.predicts,) = with_averages("a", decay)

    def losses(self, step: Step) -> Terms:
        """The loss on the labelled patches."""
        return {"a": step.from_labels(step.networks["a"])}
