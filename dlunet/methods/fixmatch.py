"""FixMatch: confident predictions on a weak view label a strong view (Sohn et al. 2020, arXiv 2001.07685)."""

from __future__ import annotations

import torch

from dlunet.methods.base import Method, Step, Stream, Terms, Trained
from dlunet.methods.confidence import SurePseudoLabels


class FixMatch(Method):
    """One network teaches itself: confident predictions on the weak view are the targets for the strong view.

    Equation 4 per voxel: the mean of 1(max q ≥ τ)·H(argmax q, p) over all voxels.

    Args:
        threshold: τ.
        unlabelled_weight: λ of the total loss.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained()}  # noqa: RUF012
    predicts = "a"
    streams = {  # noqa: RUF012
        "labelled": Stream(labelled=True),
        "unlabelled": Stream(labelled=False, views=("weak", "strong")),
    }

    def __init__(self, threshold: float = 0.95, unlabelled_weight: float = 1.0, supervised_epochs: int = 0) -> None:
        super().__init__(supervised_epochs)
        self.threshold = threshold
        self.unlabelled_weight = unlabelled_weight

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, that of the confident voxels."""
        network = step.networks["a"]
        terms = step.from_labels(network)
        if "unlabelled" in step.batch:
            views = step.batch["unlabelled"]
            with torch.no_grad():
                pseudo = SurePseudoLabels.of(network(views["weak"]), self.threshold)
            terms["unlabelled"] = self.unlabelled_weight * pseudo.teach(network(views["strong"]), step.pseudo_loss)
        return {"a": terms}
