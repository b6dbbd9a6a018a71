"""Methods with one network, on unlabelled patches of which it is certain everywhere, partly or nowhere."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlunet.losses import DeepSupervisionLoss
from dlunet.methods import EntropyMinimisation, FixMatch, Progress, Step

PATCH, CLASSES, BATCH = (3, 4, 5), 4, 2


class Levels(nn.Module):
    """A network with a fine and a coarse output."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv3d(1, CLASSES, 3, padding=1)
        self.coarse = nn.Conv3d(1, CLASSES, 3, stride=2, padding=1)

    def forward(self, x):
        return [5 * self.fine(x), self.coarse(x)]


class VoxelCrossEntropy(nn.Module):
    """Cross entropy, averaged over voxels with their weights."""

    def forward(self, logits, target, weight=None):
        values = F.cross_entropy(logits, target, reduction="none")
        return values.mean() if weight is None else (values * weight).sum() / weight.sum().clamp_min(1e-5)


@pytest.fixture
def step():
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    image, weak, strong, weak_j, strong_j = (torch.randn(BATCH, 1, *PATCH, **draw) for _ in range(5))
    label = torch.randint(0, CLASSES, (BATCH, *PATCH), generator=generator)
    batch = {
        "labelled": {"weak": image, "label": label},
        "unlabelled": {"weak": weak, "strong": strong},
        "unlabelled_j": {"weak": weak_j, "strong": strong_j},
    }
    torch.manual_seed(0)
    network, loss = Levels().double(), DeepSupervisionLoss(VoxelCrossEntropy())

    return Step({"a": network}, batch, loss, loss, Progress(3, 1, 1.0), torch.Generator())


def voxels(network, x):
    """Class probabilities of each voxel in the fine output, as Python floats."""
    p = network(x)[0].softmax(1).movedim(1, -1)
    return [p[index].tolist() for index in itertools.product(range(BATCH), *map(range, PATCH))]


def test_the_entropy_of_what_is_certain_is_0_with_a_gradient(step):
    with torch.no_grad():
        step.networks["a"].fine.weight.mul_(1e6)
    terms = EntropyMinimisation().losses(step)["a"]
    terms["entropy"].backward()
    assert terms["entropy"].item() == pytest.approx(0, abs=1e-6)
    assert step.networks["a"].fine.weight.grad.isfinite().all()


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.1])
def test_only_sure_voxels_are_targets_and_all_count_in_the_mean(step, threshold):
    network, views = step.networks["a"], step.batch["unlabelled"]
    taught, learnt = voxels(network, views["weak"]), voxels(network, views["strong"])
    sure = [max(q) >= threshold for q in taught]
    assert {0.0: all(sure), 0.9: any(sure) and not all(sure), 1.1: not any(sure)}[threshold]
    terms = FixMatch(threshold, unlabelled_weight=0.7, cut_mix_probability=0).losses(step)["a"]
    cost = sum(-math.log(p[q.index(max(q))]) for q, p, s in zip(taught, learnt, sure, strict=True) if s)
    assert terms["unlabelled"].item() == pytest.approx(0.7 * cost / len(taught), rel=1e-9)


def test_no_gradient_flows_through_the_pseudo_labels(step):
    weak = [step.batch[name]["weak"].requires_grad_() for name in ("unlabelled", "unlabelled_j")]
    terms = FixMatch(threshold=0.5).losses(step)["a"]
    terms["unlabelled"].backward()
    assert all(views.grad is None for views in weak) and step.networks["a"].fine.weight.grad.any()
