"""Mean Teacher: consistency with the student's moving average (Tarvainen and Valpola 2017, arXiv 1703.01780)."""

from __future__ import annotations

import torch
from torch import Tensor

from dlunet.methods.base import Averaged, Method, Step, Stream, Terms, Trained
from dlunet.methods.outputs import probabilities
from dlunet.methods.ramps import sigmoid_ramp


class MeanTeacher(Method):
    """The student learns from the labels, and to predict on a strong view what its teacher predicts on the weak view.

    The consistency is the mean squared difference of the two softmax outputs (eq. 1), on unlabelled patches; the
    teacher's weights are θ' ← α·θ' + (1 − α)·θ after each step (eq. 2), and the teacher predicts. The weight and its
    ramp are those of the authors of UA-MT and of SSL4MIS for volumes.

    Args:
        consistency_weight: Weight of the consistency at the end of its ramp.
        ramp: The fraction of the run over which the weight rises, by exp(−5(1 − t)²).
        decay: α.
        supervised_epochs: See :class:`Method`.
    """

    predicts = "teacher"
    streams = {  # noqa: RUF012
        "labelled": Stream(labelled=True),
        "unlabelled": Stream(labelled=False, views=("weak", "strong")),
    }

    def __init__(
        self, consistency_weight: float = 0.1, ramp: float = 1.0, decay: float = 0.99, supervised_epochs: int = 0
    ) -> None:
        super().__init__(supervised_epochs)
        self.networks = {"student": Trained(), "teacher": Averaged("student", decay)}
        self.consistency_weight = consistency_weight
        self.ramp = ramp

    def losses(self, step: Step) -> Terms:
        """The labelled term and, after the supervised epochs, the consistency."""
        student = step.networks["student"]
        terms = step.from_labels(student)
        if "unlabelled" in step.batch:
            views = step.batch["unlabelled"]
            with torch.no_grad():
                by_teacher = probabilities(step.networks["teacher"](views["weak"]))
            by_student = probabilities(student(views["strong"]))
            weight = self.consistency_weight * sigmoid_ramp(step.progress.fraction, self.ramp)
            terms["consistency"] = weight * self.consistency(step, by_student, by_teacher)
        return {"student": terms}

    def consistency(self, step: Step, student: Tensor, teacher: Tensor) -> Tensor:
        """Equation 1: the mean squared difference of the probabilities (B, C, z, y, x)."""
        return (student - teacher).square().mean()
