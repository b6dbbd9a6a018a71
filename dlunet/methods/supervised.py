"""Supervised training on labelled patches only."""

from __future__ import annotations

from dlunet.methods.base import Method, Step, Stream, Terms, Trained


class Supervised(Method):
    """One network, trained on labelled patches."""

    networks = {"a": Trained()}  # noqa: RUF012
    predicts = "a"
    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def losses(self, step: Step) -> Terms:
        """The loss on the labelled patches."""
        return {"a": step.from_labels(step.networks["a"])}
