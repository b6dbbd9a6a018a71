"""Cross teaching: two networks of different kinds teach each other (Luo et al. 2022, arXiv 2112.04894)."""

from __future__ import annotations

from torch import Tensor, nn

from dlunet.methods.base import Method, Step, Stream, Terms, Trained
from dlunet.methods.outputs import Outputs, in_one_pass, pseudo_labels
from dlunet.methods.ramps import sigmoid_ramp


class CrossTeaching(Method):
    """Each network learns from the labels and, on unlabelled patches, from the other's pseudo-labels (eq. 2 to 4).

    The pseudo-labels differ because the architectures do; patches are not mixed.

    Args:
        unlabelled_weight: Weight of the two pseudo-supervised terms at the end of their ramp, 0.1 in the paper.
        ramp: See :func:`sigmoid_ramp`; the paper's weight rises over the whole run.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained(), "b": Trained(config="other_network")}  # noqa: RUF012
    predicts = "a"
    streams = {"labelled": Stream(labelled=True), "unlabelled": Stream(labelled=False)}  # noqa: RUF012

    def __init__(self, unlabelled_weight: float = 0.1, ramp: float = 1.0, supervised_epochs: int = 0) -> None:
        super().__init__(supervised_epochs)
        self.unlabelled_weight = unlabelled_weight
        self.ramp = ramp

    def losses(self, step: Step) -> Terms:
        """The labelled terms of both networks and, after the supervised epochs, the unlabelled ones."""
        if "unlabelled" not in step.batch:
            return step.learn(step.from_labels, "ab")
        labelled, unlabelled = step.batch["labelled"], step.batch["unlabelled"]
        weight = self.unlabelled_weight * sigmoid_ramp(step.progress.fraction, self.ramp)
        # In one pass: PyTorch convolves a single small patch several times as slowly as one of a batch, on a CPU.
        seen = step.each(lambda network: in_one_pass(network, labelled["weak"], unlabelled["weak"]), "ab")

        def learn(_: nn.Module, own: Outputs, of_other: Outputs) -> dict[str, Tensor]:
            (on_labelled, on_unlabelled), taught = own, pseudo_labels(of_other[1])
            return {
                "labelled": step.loss(on_labelled, labelled["label"]),
                "unlabelled": weight * step.pseudo_loss(on_unlabelled, taught),
            }

        return step.each(learn, "ab", (seen["a"], seen["b"]), (seen["b"], seen["a"]))
