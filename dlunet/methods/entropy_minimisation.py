"""Entropy minimisation (Grandvalet and Bengio 2004; Vu et al. 2019, arXiv 1811.12833)."""

from __future__ import annotations

import math

from dlunet.methods.base import Method, Step, Stream, Terms, Trained
from dlunet.methods.outputs import entropy, probabilities
from dlunet.methods.ramps import sigmoid_ramp


class EntropyMinimisation(Method):
    """One network that also minimises the entropy of its output on unlabelled patches.

    The entropy of a voxel is −Σ p·log p / log C (Vu et al., eq. 2), and its mean over voxels is minimised (eq. 3). The
    weight and its ramp are those of SSL4MIS for volumes.

    Args:
        entropy_weight: Weight of the entropy at the end of its ramp.
        ramp: See :func:`sigmoid_ramp`.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained()}  # noqa: RUF012
    predicts = "a"
    streams = {"labelled": Stream(labelled=True), "unlabelled": Stream(labelled=False)}  # noqa: RUF012

    def __init__(self, entropy_weight: float = 0.1, ramp: float = 1.0, supervised_epochs: int = 0) -> None:
        super().__init__(supervised_epochs)
        self.entropy_weight = entropy_weight
        self.ramp = ramp

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, the entropy."""
        network = step.networks["a"]
        terms = step.from_labels(network)
        if "unlabelled" in step.batch:
            p = probabilities(network(step.batch["unlabelled"]["weak"]))
            mean = entropy(p).mean() / math.log(p.shape[1])
            terms["entropy"] = self.entropy_weight * sigmoid_ramp(step.progress.fraction, self.ramp) * mean
        return {"a": terms}
