"""Mean Teacher over the course of training: the ramp, and how certain the teacher has to be."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlunet.methods import Progress, Step, UncertaintyAwareMeanTeacher, sigmoid_ramp

PATCH, CLASSES = (4, 6, 8), 14


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    weak, strong, image = torch.randn(3, 2, 1, *PATCH, generator=generator)
    label = torch.randint(0, CLASSES, (2, *PATCH), generator=generator)
    return {"labelled": {"weak": image, "label": label}, "unlabelled": {"weak": weak, "strong": strong}}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Conv3d(1, CLASSES, 3, padding=1)


@pytest.mark.parametrize(("fraction", "share"), [(0, 0.75 + 0.25 * math.exp(-5)), (1, 1)])
def test_an_uncertain_teacher_is_not_followed(network, batch, fraction, share):
    """Without noise all passes are identical, so that the teacher's own entropy is its uncertainty."""
    torch.manual_seed(3)
    teacher = nn.Conv3d(1, CLASSES, 3, padding=1)
    with torch.no_grad():
        teacher.weight *= 2
    step = Step(
        {"student": network, "teacher": teacher}, batch, F.cross_entropy, F.cross_entropy,
        Progress(7, 3, fraction), torch.Generator().manual_seed(1),
    )  # fmt: skip
    term = UncertaintyAwareMeanTeacher(passes=3, noise=0.0, consistency_weight=1, ramp=0.4).losses(step)["student"][
        "consistency"
    ]
    weak, strong = batch["unlabelled"].values()
    q, p = (f.softmax(1).movedim(1, -1).reshape(-1, CLASSES).tolist() for f in (teacher(weak), network(strong)))
    total, count = 0.0, 0
    for there, here in zip(q, p, strict=True):
        if -sum(value * math.log(value) for value in there) < share * math.log(CLASSES):
            total, count = total + sum((a - b) ** 2 for a, b in zip(there, here, strict=True)) / CLASSES, count + 1
    assert count == len(q) if fraction else 0 < count < len(q)
    ramp = math.exp(-5) if fraction == 0 else 1
    assert term.item() == pytest.approx(ramp * total / count, rel=1e-4)


def test_ramp():
    assert [sigmoid_ramp(x, 0.5) for x in (0.5, 0.8, 1)] == [1, 1, 1]
    assert sigmoid_ramp(0, 0) == 1
    assert sigmoid_ramp(0.25, 0.5) == pytest.approx(math.exp(-1.25))
