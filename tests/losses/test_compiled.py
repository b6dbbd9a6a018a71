"""Compiled losses give the value and the gradient of PyTorch's in float64; where they cannot run, PyTorch does."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlunet.losses import (
    BalancedCrossEntropyLoss,
    DiceCrossEntropyLoss,
    GeneralisedDiceLoss,
    GradientAwareDiceLoss,
    GradientAwareLoss,
    NoiseRobustDiceLoss,
    RobustSegmentationLoss,
    TaylorCrossEntropyLoss,
    TverskyLoss,
    compiled,
    largest_class,
)
from dlunet.native import library, why_unavailable
from tests.native.variants import VARIANTS, needs_compiler

EVERY_FLAGS = pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)

LOSSES = {
    "nrd": NoiseRobustDiceLoss(),
    "nrd squared, a sample": NoiseRobustDiceLoss(denominator="squared", batch_dice=False),
    "nrd with background": NoiseRobustDiceLoss(include_background=True),
    "tce": TaylorCrossEntropyLoss(),
    "tce published": TaylorCrossEntropyLoss(variant="published"),
    "robust": RobustSegmentationLoss(),
    "robust as published": RobustSegmentationLoss(denominator="squared", tce_variant="published"),
    "dice + ce": DiceCrossEntropyLoss(),
    "tversky": TverskyLoss(),
    "generalised dice": GeneralisedDiceLoss(),
    "balanced": BalancedCrossEntropyLoss(),
    "gradient-aware dice": GradientAwareDiceLoss(),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
LABEL_TYPES = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32, torch.int64)
IGNORED = 127

LAYOUTS = {
    "classes first": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "neither": lambda x: x.transpose(2, 4).contiguous().transpose(2, 4),
    "a part": lambda x: torch.cat([x, x], 4)[..., : x.shape[4]],
}


def draw(classes, shape, layout="classes first", scale=2.0, seed=0, dtype=torch.uint8):
    """Random logits (B, C, z, y, x), and labels that are wrong in places."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    guess = torch.randint(0, classes, shape, generator=generator)
    target = guess.where(torch.rand(shape, generator=generator) < 0.5, logits.argmax(1))
    return LAYOUTS[layout](logits), target.to(dtype)


def value_and_gradient(loss, logits, *arguments, flags=None):
    """Of the loss as it is called, or of its compiled code with given flags."""
    logits = logits.detach().requires_grad_()
    if flags is None:
        value = loss(logits, *arguments)
    else:
        target, weight, ignore, class_weight = arguments
        sums = compiled.class_sums(logits, target, weight, ignore, loss.terms, flags)
        value = loss.from_sums(sums, class_weight)
    return value.detach(), torch.autograd.grad(value, logits)[0]


def check(loss, logits, target, weight=None, ignore=None, class_weight=None, flags=library.FLAGS):
    """Value and gradient are those of PyTorch in float64 to 1e-5, or to the precision of probabilities near 1."""
    value, gradient = value_and_gradient(loss, logits, target, weight, ignore, class_weight, flags=flags)
    wide = (None if x is None else x.double() for x in (weight, class_weight))
    expected, slope = value_and_gradient(loss, logits.double(), target.long(), next(wide), ignore, next(wide))
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    if logits.is_contiguous() or logits.is_contiguous(memory_format=torch.channels_last_3d):
        assert gradient.stride() == logits.stride()
    assert (gradient - slope).norm() <= 1e-5 * slope.norm() + 1e-6 / target.numel() ** 0.5


@needs_compiler
@EVERY_FLAGS
@settings(deadline=None)
@given(data=st.data())
def test_value_and_gradient_are_pytorchs_in_float64(flags, data):
    name = data.draw(st.sampled_from(list(LOSSES)))
    classes = data.draw(st.one_of(st.integers(2, 20), st.integers(21, 120)))
    sides = st.integers(1, 12 if classes <= 20 else 6)
    shape = data.draw(st.tuples(st.integers(1, 3), sides, sides, sides))
    logits, target = draw(
        classes,
        shape,
        data.draw(st.sampled_from(list(LAYOUTS))),
        data.draw(st.sampled_from([0.0, 0.1, 2.0, 20.0, 1000.0])),
        data.draw(st.integers(0, 100)),
        data.draw(st.sampled_from(LABEL_TYPES)),
    )
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7)
    is_ignored = torch.rand(shape, generator=generator) < 0.3
    ignore = IGNORED if data.draw(st.booleans()) else None
    if ignore is not None:
        target = target.long().masked_fill(is_ignored, IGNORED).to(target.dtype)
    class_weight = 3 * torch.rand(classes, generator=generator) if data.draw(st.booleans()) else None
    check(LOSSES[name], logits, target, weight if data.draw(st.booleans()) else None, ignore, class_weight, flags)


@needs_compiler
@EVERY_FLAGS
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 2, 14, 40])
@pytest.mark.parametrize("scale", [0.0, 2.0, 1000.0])
def test_cross_entropies_of_voxels_are_pytorchs_in_float64(flags, layout, classes, scale):
    logits, target = draw(classes, (2, 5, 7, 9), layout, scale)
    of_voxels = torch.rand(target.shape, generator=torch.Generator().manual_seed(1))
    logits, wide = logits.requires_grad_(), logits.detach().double().requires_grad_()
    found = compiled.cross_entropies(logits, target, flags)
    expected = torch.nn.functional.cross_entropy(wide, target.long(), reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,), (slope,) = (
        torch.autograd.grad(found, logits, of_voxels),
        torch.autograd.grad(expected, wide, of_voxels.double()),
    )
    assert (gradient - slope).norm() <= 1e-5 * slope.norm() + 1e-6 / target.numel() ** 0.5


@needs_compiler
def test_cross_entropies_of_float32_do_not_depend_on_the_default_type():
    logits, target = draw(14, (2, 5, 7, 9))
    expected = compiled.cross_entropies(logits, target)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        found = compiled.cross_entropies(logits, target)
    finally:
        torch.set_default_dtype(default)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@needs_compiler
def test_the_gradient_aware_loss_is_that_of_float64():
    logits, target = draw(14, (2, 9, 33, 41))
    logits, wide = logits.requires_grad_(), logits.detach().double().requires_grad_()
    found, expected = GradientAwareLoss()(logits, target), GradientAwareLoss()(wide, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,), (slope,) = torch.autograd.grad(found, logits), torch.autograd.grad(expected, wide)
    assert (gradient - slope).norm() <= 1e-5 * slope.norm()


@needs_compiler
@EVERY_FLAGS
@EVERY_LOSS
def test_many_blocks_of_voxels(loss, flags):
    check(loss, *draw(5, (2, 9, 33, 41)), flags=flags)


@needs_compiler
@pytest.mark.parametrize("name", ["tce", "tce published", "nrd with background"])
def test_a_single_class(name):
    check(LOSSES[name], *draw(1, (2, 3, 4, 5)))


@needs_compiler
@EVERY_LOSS
def test_gradient_is_the_slope_of_the_value(loss):
    """Along random directions, by central differences of the sums, which are in float64."""
    logits, target = draw(4, (2, 3, 4, 5))
    _, gradient = value_and_gradient(loss, logits, target, None, None, None, flags=library.FLAGS)
    for seed in range(5):
        way = torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))
        ends = [
            value_and_gradient(loss, logits + step * way, target, None, None, None, flags=library.FLAGS)[0]
            for step in (-0.01, 0.01)
        ]
        assert float((ends[1] - ends[0]) / 0.02) == pytest.approx(float((gradient * way).sum()), rel=1e-2, abs=1e-4)


@needs_compiler
@EVERY_LOSS
def test_the_number_of_threads_changes_no_bit(loss):
    logits, target = draw(6, (2, 9, 33, 41))
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append((*value_and_gradient(loss, logits, target), largest_class(logits)))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@needs_compiler
def test_networks_in_two_python_threads():
    """Each with its own loss, as `side_by_side` runs them."""
    jobs = [(loss, *draw(6, (2, 9, 33, 41), seed=seed)) for seed, loss in enumerate(LOSSES.values())]
    expected = [value_and_gradient(*job) for job in jobs]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(lambda job: value_and_gradient(*job), jobs), expected, strict=True):
                assert all(map(torch.equal, found, wanted))


@needs_compiler
@EVERY_LOSS
@pytest.mark.parametrize("place", [(0, 0, 0, 0, 0), (1, 3, 2, 3, 4)])
def test_nan_is_not_hidden(loss, place):
    logits, target = draw(4, (2, 3, 4, 5))
    logits[place] = torch.nan
    value, gradient = value_and_gradient(loss, logits, target)
    assert value.isnan() and gradient.isnan().any()


@needs_compiler
@EVERY_LOSS
def test_classes_that_are_excluded_by_minus_infinity(loss):
    logits, target = draw(4, (2, 3, 4, 5))
    logits[:, 3] = -torch.inf
    check(loss, logits, target.clamp(max=2))


@needs_compiler
@pytest.mark.parametrize("wrong", [4, 200, -1])
def test_a_label_that_is_no_class_is_refused(wrong):
    logits, target = draw(4, (1, 3, 4, 5), dtype=torch.int16)
    target[0, 2, 3, 4] = wrong
    for loss in LOSSES.values():
        with pytest.raises(IndexError, match="1 voxels whose label is none of the 4 classes"):
            loss(logits, target)
        assert loss(logits, target, ignore=wrong).isfinite()


@needs_compiler
@EVERY_LOSS
def test_only_the_inputs_are_kept_for_the_gradient(loss):
    logits, target = draw(5, (2, 9, 33, 41))
    weight, kept = torch.rand(target.shape), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss(logits.requires_grad_(), target, weight)
    large = {x.data_ptr() for x in kept if x.numel() > 1000}
    assert large == {logits.data_ptr(), target.data_ptr(), weight.data_ptr()}


@needs_compiler
def test_a_second_derivative_is_refused():
    logits, target = draw(4, (1, 3, 4, 5))
    value = DiceCrossEntropyLoss()(logits.requires_grad_(), target)
    (slope,) = torch.autograd.grad(value, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.square().sum().backward()


@needs_compiler
def test_what_pytorch_computes():
    logits, target = draw(4, (1, 3, 4, 5))
    weight, terms = torch.ones(target.shape), LOSSES["robust"].terms
    assert why_unavailable() is None and compiled.class_sums(logits, target, weight, None, terms) is not None
    for other in (
        (logits.double(), target, weight),
        (logits.half(), target, weight),
        (logits[..., :0], target[..., :0], weight[..., :0]),
        (logits, target.float(), weight),
        (logits, target, weight.double()),
        (logits, target, weight.clone().requires_grad_()),
    ):
        assert compiled.class_sums(*other, None, terms) is None
    of_two = NoiseRobustDiceLoss(gamma=2).terms
    assert compiled.class_sums(logits, target, weight, None, of_two) is None


@pytest.mark.parametrize(("compiler", "message"), [("", "no C++ compiler is installed"), ("/bin/false", "false fails")])
def test_without_a_compiler_that_works(compiler, message, empty_cache, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    logits, target = draw(4, (1, 3, 4, 5))
    assert message in why_unavailable(library.FLAGS)
    assert torch.equal(largest_class(logits), logits.argmax(1))
    for loss in LOSSES.values():
        found, expected = (
            value_and_gradient(loss, x, target, torch.ones(target.shape)) for x in (logits, logits.double())
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, check_dtype=False)
    # A missing compiler is not reported, a failing one is, once.
    assert caplog.text.count("compiled code cannot be used") == (1 if compiler else 0)


@needs_compiler
@EVERY_FLAGS
@settings(deadline=None)
@given(
    classes=st.one_of(st.integers(1, 20), st.integers(200, 300)),
    shape=st.tuples(*[st.integers(1, 7)] * 4),
    layout=st.sampled_from(list(LAYOUTS)),
    special=st.sampled_from([None, torch.nan, torch.inf, -torch.inf]),
    seed=st.integers(0, 100),
)
def test_the_largest_class_is_that_of_argmax(flags, classes, shape, layout, special, seed):
    logits, _ = draw(classes, shape, layout, seed=seed)
    logits = logits.round()  # so that some are equal
    if special is not None:
        logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)) < 0.2] = special
    found = largest_class(logits.requires_grad_(), flags)
    assert found.dtype == (torch.uint8 if classes <= 256 else torch.int64)
    assert torch.equal(found.long(), logits.argmax(1))
