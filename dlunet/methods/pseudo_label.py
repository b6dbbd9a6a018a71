"""Self-training: stored pseudo-labels are targets like labels (Lee 2013; Xie et al. 2020, arXiv 1911.04252)."""

from __future__ import annotations

from dlunet.methods.base import Method, Step, Stream, Terms, with_averages


class PseudoLabel(Method):
    """One network, trained on labelled patches and on patches with the pseudo-labels of an earlier network.

    The total loss is Lee's equation 15, L = H(y, p) + α·H(y', p'). The pseudo-labels y' are those in
    ``data.pseudo_labels``, predicted once before the training as in Xie et al.'s algorithm 1, where Lee predicts them
    anew in each step; α is constant, since there is no untrained network to wait for.

    Args:
        unlabelled_weight: α of the total loss.
        supervised_epochs: See :class:`Method`.
        decay: As in :class:`Supervised`.
    """

    streams = {  # noqa: RUF012
        "labelled": Stream(labelled=True),
        "pseudo_labelled": Stream(labelled=False, pseudo_labelled=True),
    }

    def __init__(self, unlabelled_weight: float = 1.0, supervised_epochs: int = 0, decay: float = 0.0) -> None:
        super().__init__(supervised_epochs)
        self.networks, (self.predicts,) = with_averages("a", decay)
        self.unlabelled_weight = unlabelled_weight

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, that of the pseudo-labels."""
        network = step.networks["a"]
        terms = step.from_labels(network)
        if "pseudo_labelled" in step.batch:
            patches = step.batch["pseudo_labelled"]
            loss = step.pseudo_loss(network(patches["weak"]), patches["label"])
            terms["pseudo_labelled"] = self.unlabelled_weight * loss
        return {"a": terms}
