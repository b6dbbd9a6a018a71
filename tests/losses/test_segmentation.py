"""The losses compared with the paper's formulas, written out as loops over voxels in plain Python."""

import itertools
import math

import pytest
import torch

from dlunet.losses import (
    BalancedCrossEntropyLoss,
    DiceCrossEntropyLoss,
    FocalLoss,
    GeneralisedDiceLoss,
    GradientAwareCrossEntropyLoss,
    GradientAwareDiceLoss,
    GradientAwareLoss,
    LossSum,
    NoiseRobustDiceLoss,
    RobustSegmentationLoss,
    TaylorCrossEntropyLoss,
    TopKCrossEntropyLoss,
    TverskyLoss,
)

CLASSES, SHAPE = 4, (2, 2, 2, 3)  # (B, z, y, x)
EPSILON = 1e-5
EQUAL = (1.0,) * CLASSES


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(SHAPE[0], CLASSES, *SHAPE[1:], generator=generator, dtype=torch.float64)


@pytest.fixture
def target():
    """Random labels; class 3 is absent from the second sample."""
    labels = torch.randint(0, CLASSES, SHAPE, generator=torch.Generator().manual_seed(2))
    labels[1][labels[1] == 3] = 0
    return labels


def voxels(logits, target):
    """(sample, probabilities, one-hot target) of every voxel, as Python floats."""
    for b, z, y, x in itertools.product(*map(range, SHAPE)):
        powers = [math.exp(logits[b, c, z, y, x].item()) for c in range(CLASSES)]
        yield b, [power / sum(powers) for power in powers], [float(target[b, z, y, x] == c) for c in range(CLASSES)]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def nrd(logits, target, gamma=1.5, denominator="linear", batch_dice=True, include_background=False):
    size = {"linear": lambda p, y: p + y, "squared": lambda p, y: p**2 + y**2}[denominator]
    ratios = []
    for samples in [range(SHAPE[0])] if batch_dice else [[b] for b in range(SHAPE[0])]:
        for c in range(0 if include_background else 1, CLASSES):
            pairs = [(p[c], y[c]) for b, p, y in voxels(logits, target) if b in samples]
            top = sum(abs(p - y) ** gamma for p, y in pairs)
            ratios.append(top / (sum(size(p, y) for p, y in pairs) + EPSILON))
    return mean(ratios)


def tce(logits, target, variant="paper"):
    if variant == "published":
        every = [(p, y) for _, ps, ys in voxels(logits, target) for p, y in zip(ps, ys, strict=True)]
        return mean(abs(p - y) / 2 + (p - y) ** 2 / 2 for p, y in every)
    true_class = [p[y.index(1)] for _, p, y in voxels(logits, target)]
    return mean((1 - q) + (1 - q) ** 2 / 2 for q in true_class)


def dice_cross_entropy(logits, target):
    dice = []
    for c in range(1, CLASSES):
        pairs = [(p[c], y[c]) for _, p, y in voxels(logits, target)]
        dice.append((2 * sum(p * y for p, y in pairs) + EPSILON) / (sum(p + y for p, y in pairs) + EPSILON))
    return 1 - mean(dice) + mean(-math.log(p[y.index(1)]) for _, p, y in voxels(logits, target))


def robust(logits, target, denominator="linear", tce_variant="paper"):
    return nrd(logits, target, denominator=denominator) + tce(logits, target, tce_variant)


def sums(logits, target, c):
    """Σp·y, Σp, Σp², Σy of a class."""
    pairs = [(p[c], y[c]) for _, p, y in voxels(logits, target)]
    return [
        sum(term(p, y) for p, y in pairs)
        for term in (lambda p, y: p * y, lambda p, _: p, lambda p, _: p**2, lambda _, y: y)
    ]


def cross_entropies(logits, target):
    """(cross entropy, true class) of every voxel."""
    return [(-math.log(p[y.index(1)]), y.index(1)) for _, p, y in voxels(logits, target)]


def tversky(logits, target, false_positives=0.3, false_negatives=0.7, weights=EQUAL):
    missed = []
    for c in range(1, CLASSES):
        tp, size, _, truth = sums(logits, target, c)
        both = false_positives * (size - tp) + false_negatives * (truth - tp)
        missed.append(weights[c] * (1 - (tp + EPSILON) / (tp + both + EPSILON)))
    return mean(missed)


def generalised_dice(logits, target, weights=EQUAL):
    top = bottom = 0.0
    by_class = [sums(logits, target, c) for c in range(CLASSES)]
    rarest = max(1 / truth**2 for *_, truth in by_class if truth)
    factors = [w * (1 / truth**2 if truth else rarest) for w, (*_, truth) in zip(weights, by_class, strict=True)]
    for factor, (tp, size, _, truth) in zip(factors, by_class, strict=True):
        top += factor / max(factors) * tp
        bottom += factor / max(factors) * (size + truth)
    return 1 - (2 * top + EPSILON) / (bottom + EPSILON)


def focal(logits, target, gamma=2.0, weights=EQUAL):
    seen = cross_entropies(logits, target)
    total = sum(weights[true] * (1 - math.exp(-lost)) ** gamma * lost for lost, true in seen)
    return total / sum(weights[true] for _, true in seen)


def top_k(logits, target, top=0.1, weights=EQUAL):
    seen = sorted(cross_entropies(logits, target), reverse=True)
    seen = seen[: max(1, round(top * len(seen)))]
    return sum(weights[true] * lost for lost, true in seen) / sum(weights[true] for _, true in seen)


def balanced(logits, target, balance=0.5, weights=EQUAL):
    seen = cross_entropies(logits, target)
    sizes = [sum(true == c for _, true in seen) for c in range(CLASSES)]
    factors = [weights[true] * sizes[true] ** -balance for _, true in seen]
    return sum(factor * lost for factor, (lost, _) in zip(factors, seen, strict=True)) / sum(factors)


def gradient_aware_dice(logits, target):
    terms = []
    for c in range(CLASSES):
        tp, _, squares, truth = sums(logits, target, c)
        terms.append(1 - 2 * tp / (squares + truth) if truth else squares / math.prod(SHAPE))
    return mean(terms)


def gradient_aware_cross_entropy(logits, target, top=0.1, gamma=0.5):
    seen = sorted(cross_entropies(logits, target), reverse=True)
    seen = seen[: max(1, round(top * len(seen)))]
    total = 0.0
    for c in range(CLASSES):
        of_class = [lost for lost, true in seen if true == c]
        if of_class:
            total += sum(of_class) / (len(of_class) ** (1 - gamma) * len(seen) ** gamma)
    return total


def gradient_aware(logits, target, **settings):
    return gradient_aware_dice(logits, target) + gradient_aware_cross_entropy(logits, target, **settings)


NRD_SETTINGS = [
    {"gamma": gamma, "denominator": denominator, "batch_dice": batch_dice, "include_background": background}
    for gamma in (1.5, 2.0)
    for denominator in ("linear", "squared")
    for batch_dice in (True, False)
    for background in (True, False)
]
SETTINGS = [
    *((NoiseRobustDiceLoss, nrd, settings) for settings in ({}, *NRD_SETTINGS)),
    *((TaylorCrossEntropyLoss, tce, settings) for settings in ({}, {"variant": "paper"}, {"variant": "published"})),
    (DiceCrossEntropyLoss, dice_cross_entropy, {}),
    (RobustSegmentationLoss, robust, {}),
    (RobustSegmentationLoss, robust, {"denominator": "squared", "tce_variant": "published"}),
    *((TverskyLoss, tversky, settings) for settings in ({}, {"false_positives": 0.5, "false_negatives": 0.5})),
    (GeneralisedDiceLoss, generalised_dice, {}),
    *((FocalLoss, focal, settings) for settings in ({}, {"gamma": 1.5}, {"gamma": 0})),
    *((TopKCrossEntropyLoss, top_k, {"top": top}) for top in (0.01, 0.1, 0.6, 1)),
    *((BalancedCrossEntropyLoss, balanced, {"balance": balance}) for balance in (0, 0.5, 1)),
    (GradientAwareDiceLoss, gradient_aware_dice, {}),
    *(
        (loss, by_hand, {"top": top, "gamma": gamma})
        for loss, by_hand in (
            (GradientAwareCrossEntropyLoss, gradient_aware_cross_entropy),
            (GradientAwareLoss, gradient_aware),
        )
        for top in (0.1, 0.7)
        for gamma in (0, 0.5, 1)
    ),
]
LOSSES = {
    "nrd": NoiseRobustDiceLoss(),
    "nrd squared": NoiseRobustDiceLoss(denominator="squared"),
    "nrd a sample": NoiseRobustDiceLoss(batch_dice=False, include_background=True),
    "tce": TaylorCrossEntropyLoss(),
    "tce published": TaylorCrossEntropyLoss(variant="published"),
    "dice + ce": DiceCrossEntropyLoss(),
    "robust": RobustSegmentationLoss(),
    "tversky": TverskyLoss(),
    "generalised dice": GeneralisedDiceLoss(),
    "focal": FocalLoss(),
    "top k": TopKCrossEntropyLoss(0.3),
    "balanced": BalancedCrossEntropyLoss(),
    "gradient-aware": GradientAwareLoss(0.3),
    "sum": LossSum(dice=TverskyLoss(), focal=FocalLoss()),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.mark.parametrize(("loss", "by_hand", "settings"), SETTINGS)
def test_loss_is_its_formula(loss, by_hand, settings, logits, target):
    expected = by_hand(logits, target, **settings)
    assert loss(**settings)(logits, target).item() == pytest.approx(expected, abs=1e-10)
    assert loss(**settings)(logits.float(), target).item() == pytest.approx(expected, abs=1e-6)


def repeated(logits, target, times):
    """Each voxel of a batch repeated ``times`` times, as a batch of one patch of size (1, 1, n)."""
    row = logits.movedim(1, -1)[times > 0], target[times > 0]
    scores, labels = (values.repeat_interleave(times[times > 0], 0) for values in row)
    return scores.T[None, :, None, None], labels[None, None, None]


@EVERY_LOSS
def test_a_voxel_of_weight_n_counts_as_n_voxels(loss, logits, target):
    times = torch.randint(0, 4, SHAPE, generator=torch.Generator().manual_seed(4))
    assert (times == 0).any()
    if loss is LOSSES["nrd a sample"]:
        expected = mean(loss(*repeated(*(x[b : b + 1] for x in (logits, target, times)))) for b in range(SHAPE[0]))
    else:
        expected = loss(*repeated(logits, target, times))
    torch.testing.assert_close(loss(logits, target, weight=times.double()), expected)


@EVERY_LOSS
def test_an_ignored_label_is_as_a_weight_of_zero(loss, logits, target):
    ignored = torch.rand(SHAPE, generator=torch.Generator().manual_seed(5)) < 0.3
    labels, kept = target.masked_fill(ignored, 255).to(torch.uint8), (~ignored).double()
    value = loss(logits.requires_grad_(), labels, ignore=255)
    torch.testing.assert_close(value, loss(logits, target, weight=kept))
    torch.testing.assert_close(
        loss(logits, labels, weight=3 * kept + 1, ignore=255), loss(logits, target, weight=4 * kept)
    )
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient.movedim(1, -1)[ignored].any() and gradient.movedim(1, -1)[~ignored].any()


@EVERY_LOSS
def test_nothing_that_counts_costs_nothing_the_network_could_change(loss, logits, target):
    value = loss(logits.requires_grad_(), torch.full_like(target, 255), ignore=255)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.isfinite() and not gradient.any()


@EVERY_LOSS
def test_weights_of_another_size_are_refused(loss, logits, target):
    with pytest.raises(ValueError, match=r"weight is \(2, 1, 2, 3\), expected \(2, 2, 2, 3\)"):
        loss(logits, target, weight=torch.ones(2, 1, 2, 3))


@EVERY_LOSS
def test_gradient_is_that_of_the_loss(loss, logits, target):
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())


@EVERY_LOSS
def test_perfect_prediction_costs_nothing(loss, target):
    certain = torch.nn.functional.one_hot(target, CLASSES).movedim(-1, 1) * 1e4
    assert loss(certain.float().requires_grad_(), target).item() == pytest.approx(0, abs=1e-6)


def test_classes_count_by_their_weights(logits, target):
    """NRD, Dice: class terms times weights, divided by the number of classes; TCE, CE: weighted mean over voxels."""
    weights = [0.5, 2.0, 0.0, 3.0]
    seen = list(voxels(logits, target))
    total = sum(sum(w * t for w, t in zip(weights, y, strict=True)) for _, _, y in seen)
    dice, robust = [], []
    for c in range(1, CLASSES):
        pairs = [(p[c], y[c]) for _, p, y in seen]
        size = sum(p + y for p, y in pairs)
        robust.append(weights[c] * sum(abs(p - y) ** 1.5 for p, y in pairs) / (size + EPSILON))
        dice.append(weights[c] * (1 - (2 * sum(p * y for p, y in pairs) + EPSILON) / (size + EPSILON)))
    tce = ce = 0.0
    for _, p, y in seen:
        true = y.index(1.0)
        miss = 1 - p[true]
        tce += weights[true] * (miss + miss**2 / 2) / total
        ce -= weights[true] * math.log(p[true]) / total
    given = torch.tensor(weights, dtype=logits.dtype)
    found = [
        loss(logits, target, class_weight=given).item() for loss in (RobustSegmentationLoss(), DiceCrossEntropyLoss())
    ]
    assert found == pytest.approx([mean(robust) + tce, mean(dice) + ce], rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (TverskyLoss(), tversky),
        (GeneralisedDiceLoss(), generalised_dice),
        (FocalLoss(), focal),
        (TopKCrossEntropyLoss(0.6), lambda *given, **weights: top_k(*given, top=0.6, **weights)),
        (BalancedCrossEntropyLoss(), balanced),
    ],
)
def test_classes_count_by_their_weights_in_losses_for_rare_classes(loss, by_hand, logits, target):
    weights = [0.5, 2.0, 0.25, 3.0]
    found = loss(logits, target, class_weight=torch.tensor(weights, dtype=logits.dtype)).item()
    assert found == pytest.approx(by_hand(logits, target, weights=weights), rel=1e-6)
    assert found != pytest.approx(by_hand(logits, target), rel=1e-2)


@EVERY_LOSS
def test_equal_weights_of_classes_change_nothing(loss, logits, target):
    plain = loss(logits, target)
    torch.testing.assert_close(loss(logits, target, class_weight=torch.ones(CLASSES, dtype=logits.dtype)), plain)


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(loss, dtype):
    """A sum over 40³ voxels exceeds float16's range and has no precision left in bfloat16."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1, CLASSES, 40, 40, 40, generator=generator).to(dtype).requires_grad_()
    target = torch.zeros(1, 40, 40, 40, dtype=torch.uint8)
    value = loss(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert logits.grad.isfinite().all()
    assert value.item() == pytest.approx(loss(logits.detach().double(), target).item(), rel=1e-5)


@pytest.mark.parametrize(("denominator", "expected"), [("linear", 0.001), ("squared", 125)])
def test_absent_class_hardly_predicted_costs_little_only_with_the_linear_denominator(denominator, expected):
    """The one foreground class is absent from a patch of the paper's size, at a uniform p = 1e-6."""
    p, shape = 1e-6, (56, 160, 160)
    voxel = torch.tensor([math.log(1 - p), math.log(p)])
    logits = voxel[None, :, None, None, None].expand(1, 2, *shape)
    value = NoiseRobustDiceLoss(denominator=denominator)(logits, torch.zeros(1, *shape, dtype=torch.int64)).item()
    n = math.prod(shape)
    assert value == pytest.approx(n * p**1.5 / (n * (p if denominator == "linear" else p**2) + EPSILON), rel=1e-4)
    assert value == pytest.approx(expected, rel=0.01)


FOREGROUND = (CLASSES - 1) / CLASSES  # fraction of the old classes in a mean over foreground classes, then over all
ALL = CLASSES / (CLASSES + 1)


@pytest.mark.parametrize(
    ("loss", "factor"),
    [
        (NoiseRobustDiceLoss(), FOREGROUND),
        (NoiseRobustDiceLoss(include_background=True), ALL),
        (TaylorCrossEntropyLoss(), 1),
        (TaylorCrossEntropyLoss(variant="published"), ALL),
    ],
)
def test_class_absent_and_nowhere_predicted_only_joins_the_mean(loss, factor, logits, target):
    """With an additional, empty class no term of the loss changes; only the mean is over one class more."""
    nowhere = torch.full_like(logits[:, :1], -1e4)
    value = loss(torch.cat([logits, nowhere], dim=1), target)
    torch.testing.assert_close(value, factor * loss(logits, target))


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (NoiseRobustDiceLoss, {"denominator": "cubic"}),
        (TaylorCrossEntropyLoss, {"variant": "code"}),
        (RobustSegmentationLoss, {"denominator": "cubic"}),
        (RobustSegmentationLoss, {"tce_variant": "code"}),
        (TopKCrossEntropyLoss, {"top": 0}),
        (GradientAwareLoss, {"top": 1.5}),
        (FocalLoss, {"gamma": 0.5}),
        (FocalLoss, {"gamma": -1}),
    ],
)
def test_an_impossible_setting_is_refused(loss, wrong):
    with pytest.raises(ValueError, match=repr(next(iter(wrong.values())))):
        loss(**wrong)


def test_a_class_that_is_absent_is_pushed_down_less_the_less_it_is_predicted(logits):
    """GADice: the gradient at the logits of the stopped product sg(p)·p is that of Σp² with one factor held fixed."""
    target = torch.zeros(SHAPE, dtype=torch.int64)
    logits.requires_grad_()
    p = logits.softmax(1)
    stopped = (p.detach() * p)[:, 1:].sum() / math.prod(SHAPE)
    background = 1 - 2 * p[:, 0].sum() / (p[:, 0].square().sum() + math.prod(SHAPE))
    (expected,) = torch.autograd.grad((stopped + background) / CLASSES, logits)
    (found,) = torch.autograd.grad(GradientAwareDiceLoss()(logits, target), logits)
    torch.testing.assert_close(found, expected)


def test_class_weights_scale_the_terms_of_classes(logits, target):
    """With a weight for one class alone, its term alone counts."""
    for c in range(CLASSES):
        weights = torch.zeros(CLASSES, dtype=logits.dtype)
        weights[c] = 2.0
        seen = sorted(cross_entropies(logits, target), reverse=True)[: round(0.3 * math.prod(SHAPE))]
        lost = [value for value, true in seen if true == c]
        ce = sum(lost) / (len(lost) ** 0.5 * len(seen) ** 0.5) if lost else 0
        tp, _, squares, truth = sums(logits, target, c)
        dice = (1 - 2 * tp / (squares + truth)) / CLASSES
        found = GradientAwareLoss(0.3)(logits, target, class_weight=weights).item()
        assert found == pytest.approx(2 * (ce + dice), rel=1e-6)


@EVERY_LOSS
def test_target_of_another_size_or_with_an_unknown_class_is_refused(loss, logits, target):
    with pytest.raises(ValueError, match="target is"):
        loss(logits, target[:, :1])
    with pytest.raises((RuntimeError, IndexError)):
        loss(logits, torch.full_like(target, CLASSES))


@pytest.mark.parametrize("gamma", [0, 1, 1.5, 2])
def test_a_certain_voxel_has_no_focal_loss_and_a_finite_gradient(gamma):
    logits = torch.tensor([200.0, 0.0, 0.0]).reshape(1, 3, 1, 1, 1).requires_grad_()
    loss = FocalLoss(gamma)(logits, torch.zeros(1, 1, 1, 1, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits))
