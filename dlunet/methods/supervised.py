"""Training on labelled patches alone."""

from __future__ import annotations

from dlunet.methods.base import Method, Step, Stream, Terms, Trained


class Supervised(Method):
    """One network, labelled patches."""

    networks = {"a": Trained()}  # noqa: RUF012
    predicts = "a"
    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def losses(self, step: Step) -> Terms:
        """The loss on the labelled patch."""
        return {"a": step.from_labels(step.networks["a"])}
