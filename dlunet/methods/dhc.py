"""DHC: two networks with different class weights teach each other (Wang and Li 2023, arXiv 2307.11960)."""

from __future__ import annotations

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
    weights it by its rarity in the network's own pseudo-labels, at first in the labels: ln(max N/N). As in the authors'
    code, both are moving averages, divided by the largest weight, times the number of classes; they apply to labels and
    pseudo-labels, and the networks teach each other on labelled patches as well and predict together. A class that is
    absent from the labelled patches of a step keeps its difficulty. With ``sampling.accumulate_grad_batches``, each
    batch counts as a step here: the weights apply to the batch that they are measured on.

    Args:
        unlabelled_weight: Weight of the two pseudo-supervised terms at the end of their ramp.
        ramp: See :func:`sigmoid_ramp`.
        decay: Decay of the moving average of the rarity.
        window: τ, the number of steps over which the difficulty is averaged.
        supervised_epochs: See :class:`Method`.
    """

    networks = {"a": Trained(), "b": Trained()}  # noqa: RUF012
    predicts = ("a", "b")
    streams = {"labelled": Stream(labelled=True), "unlabelled": Stream(labelled=False)}  # noqa: RUF012
    label_counts: Tensor
    rarity: Tensor
    dice: Tensor
    missed: Tensor
    learnt: Tensor
    unlearnt: Tensor

    def __init__(
        self,
        unlabelled_weight: float = 0.1,
        ramp: float = 1.0,
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
        """Initially, all classes are equally difficult."""
        initial = {"label_counts": 0.0, "rarity": 0.0, "dice": _EPSILON, "missed": 1.0, "learnt": 0.0, "unlearnt": 0.0}
        for name, value in initial.items():
            self.register_buffer(name, torch.full((num_classes,), value))

    def losses(self, step: Step) -> Terms:
        """The labelled terms of both networks and, after the supervised epochs, the unlabelled ones."""
        labelled, unlabelled = step.batch["labelled"], step.batch.get("unlabelled")
        patches = torch.cat([labelled["weak"], unlabelled["weak"]]) if unlabelled else labelled["weak"]
        of_labelled, of_unlabelled = slice(len(labelled["weak"])), slice(len(labelled["weak"]), None)
        seen = step.each(lambda network: network(patches), "ab")
        known = {role: pseudo_labels(outputs) for role, outputs in seen.items()}
        difficulty = self._difficulty(known["a"][of_labelled], labelled["label"])
        rarity = self._rarity(labelled["label"], known["b"][of_unlabelled])
        weight = self.unlabelled_weight * sigmoid_ramp(step.progress.fraction, self.ramp)

        def learn(_: nn.Module, own: Tensor | list[Tensor], taught: Tensor, of_classes: Tensor) -> dict[str, Tensor]:
            on_labelled = own[of_labelled] if isinstance(own, Tensor) else [level[of_labelled] for level in own]
            terms = {"labelled": step.loss(on_labelled, labelled["label"], class_weight=of_classes)}
            if unlabelled:
                terms["unlabelled"] = weight * step.pseudo_loss(own, taught, class_weight=of_classes)
            return terms

        return step.each(learn, "ab", (seen["a"], seen["b"]), (known["b"], known["a"]), (difficulty, rarity))

    @torch.no_grad()
    def _rarity(self, label: Tensor, found: Tensor) -> Tensor:
        """The weights by rarity in pseudo-labels ``found``; from the labels so far as long as there were none."""
        if not len(found) or not self.label_counts.any():
            self.label_counts += self._count(label)
            self.rarity.copy_(_log_rarity(self.label_counts))
        if len(found):
            self.rarity.lerp_(_log_rarity(self._count(found)), 1 - self.decay)
        return self.rarity * len(self.rarity)

    def _count(self, labels: Tensor) -> Tensor:
        """The voxels of each class, of all processes."""
        return total(torch.bincount(labels.flatten(), minlength=len(self.rarity))).to(self.rarity)

    @torch.no_grad()
    def _difficulty(self, found: Tensor, label: Tensor) -> Tensor:
        """The weights by difficulty, from predictions ``found`` for labelled patches and their labels."""
        classes = len(self.dice)
        found, true = (F.one_hot(y.long(), classes).flatten(0, -2) for y in (found, label))
        both, found, true = total(torch.stack([(found * true).sum(0), found.sum(0), true.sum(0)]))
        dice = ((2 * both + _EPSILON) / (found + true + _EPSILON)).to(self.dice)
        change = (dice - self.dice) * torch.log((dice + _EPSILON) / (self.dice + _EPSILON))
        newest = (true > 0).to(self.dice) / self.window
        self.learnt.lerp_(change.where(dice > self.dice, 0), newest)
        self.unlearnt.lerp_(change.where(dice <= self.dice, 0), newest)
        self.missed.lerp_(1 - dice, newest)
        self.dice.copy_(dice.where(newest > 0, self.dice))
        difficulty = self.missed * ((self.unlearnt + _EPSILON) / (self.learnt + _EPSILON)) ** 0.2
        return difficulty / difficulty.max().clamp_min(_EPSILON) * classes


def _log_rarity(counts: Tensor) -> Tensor:
    raw = torch.log((counts.max() + _EPSILON) / (counts + _EPSILON))
    return raw / raw.max().clamp_min(_EPSILON)
