"""DHC's class weights over several steps, computed class by class in plain Python."""

import math

import pytest
import torch
from torch import nn

from dlunet.methods import METHODS, Progress, Step

CLASSES, VOXELS, EPSILON = 4, (1, 4, 6, 8), 1e-8
DECAY, WINDOW = 0.9, 5
STEPS, SUPERVISED = 6, 2


class Predicting(nn.Module):
    """Predicts given labels."""

    def __init__(self):
        super().__init__()
        self.labels = None

    def forward(self, patches):
        return nn.functional.one_hot(self.labels, CLASSES).movedim(-1, 1).double()


class Weights(nn.Module):
    """Instead of a loss, the class weights that it is given."""

    def forward(self, logits, target, class_weight):
        return class_weight.clone()


def difficulties(steps):
    """The weights of network a after each step of (predicted, true) labels of the labelled patches."""
    dice, missed, learnt, unlearnt = ([value] * CLASSES for value in (EPSILON, 1.0, 0.0, 0.0))
    for found, true in steps:
        for k in range(CLASSES):
            of_class, said = (true == k), (found == k)
            if not of_class.any():
                continue
            now = 2 * int((of_class & said).sum()) / int(of_class.sum() + said.sum())
            change = (now - dice[k]) * math.log((now + EPSILON) / (dice[k] + EPSILON))
            gained, lost = (change, 0) if now > dice[k] else (0, change)
            learnt[k] += (gained - learnt[k]) / WINDOW
            unlearnt[k] += (lost - unlearnt[k]) / WINDOW
            missed[k] += (1 - now - missed[k]) / WINDOW
            dice[k] = now
        raw = [m * ((u + EPSILON) / (g + EPSILON)) ** 0.2 for m, u, g in zip(missed, unlearnt, learnt, strict=True)]
        yield [CLASSES * value / max(raw) for value in raw]


def rarities(labels, pseudo_labels):
    """The weights of network b: those of the labels so far, then drawn towards those of its pseudo-labels."""
    counts = [0] * CLASSES
    for true in labels:
        counts = [count + int((true == k).sum()) for k, count in enumerate(counts)]
        rarity = log_rarity(counts)
        yield [CLASSES * value for value in rarity]
    for found in pseudo_labels:
        newest = log_rarity([int((found == k).sum()) for k in range(CLASSES)])
        rarity = [DECAY * old + (1 - DECAY) * new for old, new in zip(rarity, newest, strict=True)]
        yield [CLASSES * value for value in rarity]


def log_rarity(counts):
    raw = [math.log((max(counts) + EPSILON) / (count + EPSILON)) for count in counts]
    return [value / max(raw) for value in raw]


def test_class_weights_follow_the_course_of_training():
    generator = torch.Generator().manual_seed(1)

    def draw(classes=CLASSES):
        return (torch.rand(VOXELS, generator=generator).square() * classes).long()

    true = [draw(CLASSES - (number == 3)) for number in range(STEPS)]  # the last class is absent from one step
    # Better and worse than the step before, so that classes are learnt and unlearnt.
    right = [torch.rand(VOXELS, generator=generator) < share for share in (0.2, 0.7, 0.4, 0.9, 0.3, 0.6)]
    on_labelled = [labels.where(kept, draw()) for labels, kept in zip(true, right, strict=True)]
    on_unlabelled = [draw() for _ in range(STEPS)]
    method = METHODS["dhc"](decay=DECAY, window=WINDOW, unlabelled_weight=0.5, ramp=0, supervised_epochs=SUPERVISED)
    method.setup(CLASSES)
    method.double()
    networks = {role: Predicting() for role in "ab"}
    found = []
    for number in range(STEPS):
        patches = torch.zeros(1, *VOXELS)
        batch = {"labelled": {"weak": patches, "label": true[number]}}
        networks["a"].labels = networks["b"].labels = on_labelled[number]
        if number >= SUPERVISED:
            batch["unlabelled"] = {"weak": patches}
            networks["a"].labels = torch.cat([on_labelled[number], draw()])
            networks["b"].labels = torch.cat([on_labelled[number], on_unlabelled[number]])
        progress = Progress(number, number, number / STEPS)
        found.append(method.losses(Step(networks, batch, Weights(), Weights(), progress, generator)))
    hard = list(difficulties(zip(on_labelled, true, strict=True)))
    rare = list(rarities(true[:SUPERVISED], on_unlabelled[SUPERVISED:]))
    for number, terms in enumerate(found):
        assert terms["a"]["labelled"].tolist() == pytest.approx(hard[number], rel=1e-6)
        assert terms["b"]["labelled"].tolist() == pytest.approx(rare[number], rel=1e-6)
        assert ("unlabelled" in terms["a"]) == ("unlabelled" in terms["b"]) == (number >= SUPERVISED)
    assert found[-1]["a"]["unlabelled"].tolist() == pytest.approx([value / 2 for value in hard[-1]], rel=1e-6)
    assert found[-1]["b"]["unlabelled"].tolist() == pytest.approx([value / 2 for value in rare[-1]], rel=1e-6)
