"""DHC: two networks with different class weights teach each other (Wang and Li 2023, arXiv 2307.11960)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlunet.distributed import total
from dlunet.methods.base import Method, Step, Stream, Terms, Trained
from dlunet.methods.outputs import pseudo_labels
from dlunet.methods.ramps import sigmoid_ramp

_EPSILON = 1e-8


class DualDebiasedCoTraining(Method):
    """Cross pseudo supervision of two networks with different class weights.

    Network ``a`` weights a class by its difficulty: (1 − λ)·(u/l)^(1/5), with λ its Dice on the labelled patches, and
    l and u the sums of Δλ·ln(λ_t/λ_{t−1}) over the steps in which it was learnt (Δλ > 0) and unlearnt. Network ``b``
    weights it by its rarity in the network's own pseudo-labels: ln(max N/N) divided by the largest such value. Both
    weights are moving averages, as in the authors' code, times the number of classes, and apply to labels and
    pseudo-labels. A class that is absent from the labelled patches of a step keeps its difficulty.

    Args:
        unlabelled_weight: Weight of the two pseudo-supervised terms at the end of their ramp.
        ramp: See :func:`sigmoid_ramp`.
        decay: Decay of the moving average of the rarity.
        window: τ, the number of steps over which the difficulty is averaged.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained(), "b": Trained()}  # noqa: RUF012
    predicts = "a"
    streams = {"labelled": Stream(labelled=True), "unlabelled": Stream(labelled=False)}  # noqa: RUF012
    rarity: Tensor
    dice: Tensor
    missed: Tensor
    learnt: Tensor
    unlearnt: Tensor

    def __init__(
        self,
        unlabelled_weight: float = 1.0,
        ramp: float = 0.4,
        decay: float = 0.99,
        window: int = 50,
        supervised_epochs: int = 0,
    ) -> None:
        super().__init__(supervised_epochs)
        self.unlabelled_weight = unlabelled_weight
        self.ramp = ramp
        self.decay = decay
        self.window = window

    def setup(self, num_classes: int) -> None:
        """Initially, all classes are equally rare and difficult."""
        for name, value in {"rarity": 1.0, "dice": _EPSILON, "missed": 1.0, "learnt": 0.0, "unlearnt": 0.0}.items():
            self.register_buffer(name, torch.full((num_classes,), value))

    def losses(self, step: Step) -> Terms:
        """The labelled terms of both networks and, after the supervised epochs, the unlabelled ones."""
        labelled = step.batch["labelled"]
        patches = [labelled["weak"]]
        if "unlabelled" in step.batch:
            patches.append(step.batch["unlabelled"]["weak"])
        seen = step.each(lambda network: [network(x) for x in patches], "ab")
        known = self._difficulty(seen["a"][0], labelled["label"]), self._rarity(seen["b"][-1])
        weight = self.unlabelled_weight * sigmoid_ramp(step.progress.fraction, self.ramp)

        def learn(_: nn.Module, own: list, other: list, of_classes: Tensor) -> dict[str, Tensor]:
            terms = {"labelled": step.loss(own[0], labelled["label"], class_weight=of_classes)}
            if len(own) > 1:
                taught = step.pseudo_loss(own[1], pseudo_labels(other[1]), class_weight=of_classes)
                terms["unlabelled"] = weight * taught
            return terms

        return step.each(learn, "ab", (seen["a"], seen["b"]), (seen["b"], seen["a"]), known)

    @torch.no_grad()
    def _rarity(self, outputs: Tensor | Sequence[Tensor]) -> Tensor:
        counts = total(torch.bincount(pseudo_labels(outputs).flatten(), minlength=len(self.rarity))).to(self.rarity)
        raw = torch.log((counts.max() + 1) / (counts + 1))
        self.rarity.lerp_(raw / raw.max().clamp_min(_EPSILON), 1 - self.decay)
        return self.rarity * len(self.rarity)

    @torch.no_grad()
    def _difficulty(self, outputs: Tensor | Sequence[Tensor], label: Tensor) -> Tensor:
        classes = len(self.dice)
        found, true = (F.one_hot(y.long(), classes).flatten(0, -2) for y in (pseudo_labels(outputs), label))
        both, found, true = total(torch.stack([(found * true).sum(0), found.sum(0), true.sum(0)]))
        dice = ((2 * both + _EPSILON) / (found + true + _EPSILON)).to(self.dice)
        change = (dice - self.dice) * torch.log((dice + _EPSILON) / (self.dice + _EPSILON))
        newest = (true > 0).to(self.dice) / self.window
        self.learnt.lerp_(change.where(dice > self.dice, 0), newest)
        self.unlearnt.lerp_(change.where(dice <= self.dice, 0), newest)
        self.missed.lerp_(1 - dice, newest)
        self.dice.copy_(dice.where(newest > 0, self.dice))
        return self.missed * ((self.unlearnt + _EPSILON) / (self.learnt + _EPSILON)) ** 0.2 * classes
