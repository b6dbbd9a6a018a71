"""Mean Teacher against its equations, written out here."""

import copy
import math

import lightning
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlunet.labels import FLARE22
from dlunet.losses import DiceCrossEntropyLoss
from dlunet.methods import MeanTeacher, Progress, Step, UncertaintyAwareMeanTeacher, sigmoid_ramp
from dlunet.preparation import Intensity, Plan
from dlunet.training import SegmentationModule
from dlunet.training.schedules import Poly

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


@pytest.mark.parametrize(("fraction", "expected"), [(0, math.exp(-5)), (0.1, math.exp(-5 * 0.75**2)), (0.9, 1)])
def test_the_terms_are_those_of_the_equations_and_no_gradient_reaches_the_teacher(network, batch, fraction, expected):
    teacher = nn.Conv3d(1, CLASSES, 3, padding=1)
    progress = Progress(7, 3, fraction)
    step = Step(
        {"student": network, "teacher": teacher}, batch, F.cross_entropy, F.cross_entropy, progress, torch.Generator()
    )
    terms = MeanTeacher(consistency_weight=3, ramp=0.4).losses(step)["student"]
    image, label = batch["labelled"].values()
    weak, strong = batch["unlabelled"].values()
    distance = ((network(strong).softmax(1) - teacher(weak).softmax(1)) ** 2).mean()
    torch.testing.assert_close(terms["labelled"], F.cross_entropy(network(image), label))
    torch.testing.assert_close(terms["consistency"], 3 * expected * distance)
    sum(terms.values()).backward()
    assert teacher.weight.grad is None and network.weight.grad.any()


@pytest.mark.parametrize(("fraction", "share"), [(0, 0.75 + 0.25 * math.exp(-5)), (1, 1)])
def test_an_uncertain_teacher_is_not_followed(network, batch, fraction, share):
    """Without noise all passes are the same, so that the teacher's own entropy is its uncertainty."""
    torch.manual_seed(3)
    teacher = nn.Conv3d(1, CLASSES, 3, padding=1)
    with torch.no_grad():
        teacher.weight *= 2
    step = Step(
        {"student": network, "teacher": teacher}, batch, F.cross_entropy, F.cross_entropy,
        Progress(7, 3, fraction), torch.Generator().manual_seed(1),
    )  # fmt: skip
    term = UncertaintyAwareMeanTeacher(passes=3, noise=0.0, ramp=0.4).losses(step)["student"]["consistency"]
    weak, strong = batch["unlabelled"].values()
    q, p = (f.softmax(1).movedim(1, -1).reshape(-1, CLASSES).tolist() for f in (teacher(weak), network(strong)))
    total, count = 0.0, 0
    for there, here in zip(q, p, strict=True):
        if -sum(value * math.log(value) for value in there) < share * math.log(CLASSES):
            total, count = total + sum((a - b) ** 2 for a, b in zip(there, here, strict=True)) / CLASSES, count + 1
    assert count == len(q) if fraction else 0 < count < len(q)
    ramp = math.exp(-5) if fraction == 0 else 1
    assert term.item() == pytest.approx(ramp * total / count, rel=1e-4)


def test_the_teachers_passes_see_noise_drawn_by_the_steps_generator(network, batch):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return network(x)

    for _ in range(2):
        generator = torch.Generator().manual_seed(1)
        step = Step(
            {"student": network, "teacher": Spy()}, batch, F.cross_entropy, None, Progress(1, 1, 0.5), generator
        )
        UncertaintyAwareMeanTeacher(passes=4, noise=0.2).losses(step)
    first, second = seen[:5], seen[5:]
    noises = [x - batch["unlabelled"]["weak"] for x in first]
    assert not noises[0].any() and all(0 < noise.abs().max() <= 0.4001 for noise in noises[1:])
    assert not torch.equal(noises[1], noises[2])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_supervised_epochs_use_labels_alone(network, batch):
    method = MeanTeacher(supervised_epochs=2)
    assert method.needs_unlabelled
    assert [list(method.streams_in(epoch)) for epoch in (1, 2)] == [["labelled"], ["labelled", "unlabelled"]]
    labelled = {"labelled": batch["labelled"]}
    step = Step({"student": network}, labelled, F.cross_entropy, None, Progress(0, 1, 0.1), torch.Generator())
    assert list(method.losses(step)["student"]) == ["labelled"]


def test_ramp():
    assert [sigmoid_ramp(x, 0.5) for x in (0.5, 0.8, 1)] == [1, 1, 1]
    assert sigmoid_ramp(0, 0) == 1
    assert sigmoid_ramp(0.25, 0.5) == pytest.approx(math.exp(-1.25))


class Weights(lightning.Callback):
    """Notes the student's weights after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(copy.deepcopy(module.networks["student"].state_dict()))


@pytest.mark.filterwarnings("ignore")
def test_the_teacher_is_the_moving_average_of_the_students_steps(network, batch, tmp_path):
    decay, steps, notes = 0.6, 5, Weights()
    module = SegmentationModule(
        networks={"student": network},
        network_description={"kind": "LightUNet", "num_classes": CLASSES},
        method=MeanTeacher(decay=decay),
        loss=DiceCrossEntropyLoss(),
        pseudo_loss=DiceCrossEntropyLoss(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        schedule=Poly(),
        plan=Plan((1.0, 1.0, 1.0), PATCH, Intensity(0, 1, 0, 1)),
        labels=FLARE22,
    )
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[notes],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    prefix = saved["dlunet"]["weights"]
    for name in ("weight", "bias"):
        first, *later = (weights[name] for weights in notes.seen)
        n = len(later)
        expected = decay**n * first + (1 - decay) * sum(decay ** (n - 1 - k) * w for k, w in enumerate(later))
        torch.testing.assert_close(saved["state_dict"][prefix + name], expected)
        assert not torch.equal(expected, later[-1])
