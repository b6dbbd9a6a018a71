"""Compiled code gives the losses and gradients of the light U-Net written out in float64."""

from functools import partial
from math import prod

import pytest
import torch
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st

from dlunet.native.program import Program
from dlunet.networks import LightUNet, compiled
from tests.native.variants import VARIANTS, needs_compiler
from tests.networks.written_out import (
    CUBE,
    FLAT,
    ONE,
    Sensitivity,
    errors_of,
    exact_results,
    is_zero_by_construction,
    loss_of,
    parameters_of,
    random_network,
    results,
    written_out,
)

pytestmark = needs_compiler

FOR_TWO_CORES = {
    "features": (8, 16, 32, 64, 80),
    "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    "kernel_sizes": (FLAT, CUBE, CUBE, CUBE, CUBE),
}
TWO_LEVELS = {"features": (4, 12), "strides": ((1, 2, 2),), "kernel_sizes": (FLAT, CUBE), "num_classes": 3}
THREE_LEVELS = {
    "features": (3, 6, 41),
    "strides": ((1, 2, 1), (2, 2, 2)),
    "kernel_sizes": (ONE, CUBE, CUBE),
    "num_classes": 2,
}
#: Rounding exceeds 1e-5 with some inputs, whichever way sums are ordered.
MANY_CLASSES = {**THREE_LEVELS, "num_classes": 35, "deep_supervision": False}
NETWORKS = {
    "two levels": (TWO_LEVELS, (2, 1, 4, 6, 10)),
    "as for two cores": (FOR_TWO_CORES, (1, 1, 16, 48, 64)),
    "two channels, many classes, sizes that nothing divides": (MANY_CLASSES, (3, 2, 6, 20, 46)),
    "one class": ({**THREE_LEVELS, "num_classes": 1}, (3, 2, 4, 8, 6)),
    "odd strides and kernels": (
        {"features": (8, 40), "strides": ((2, 1, 2),), "kernel_sizes": ((5, 3, 3), (1, 3, 1))},
        (1, 1, 4, 3, 22),
    ),
    "more slices and rows than a thread takes at a time": (
        {"features": (4, 8), "strides": ((2, 2, 2),), "kernel_sizes": (CUBE, CUBE)},
        (1, 1, 60, 44, 22),
    ),
    "a stride that no kernel needs": (
        {"features": (5, 9), "strides": ((3, 4, 1),), "kernel_sizes": (ONE, ONE)},
        (2, 3, 6, 8, 7),
    ),
}
#: Features of two levels.
CHANNELS = [
    (1, 2),
    (2, 1),
    (3, 5),
    (7, 8),
    (8, 9),
    (15, 16),
    (17, 31),
    (32, 33),
    (64, 24),
    (100, 160),
    (320, 256),
    (1, 320),
]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def flags(request, monkeypatch):
    """Compiled code with each set of compiler flags."""
    monkeypatch.setattr(compiled, "Program", partial(Program, flags=request.param))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run_compiled(network, x):
    """The logits of every level, which compiled code computed."""
    logits = network(x)
    logits = logits if isinstance(logits, list) else [logits]
    assert all(type(each.grad_fn).__name__ == "_CompiledBackward" for each in logits)
    return logits


def assert_trains_as_written_out(network, x, loss_of=loss_of, is_sensitive=False):
    """Compare logits, loss and all gradients, the input's included, to 1e-5.

    Args:
        network: A network in training mode.
        x: Its input.
        loss_of: From logits to loss.
        is_sensitive: Whether rounding may cause larger errors: some gradients are small differences of large terms, for
            example those of a channel's scale where all that follows is normalised. No error may then be larger than
            what random errors in the 20th of float32's 24 bits do to the network written out.
    """
    x.requires_grad_()
    logits = run_compiled(network, x)
    loss = loss_of(logits)
    loss.backward()
    exact_loss, expected = exact_results(network, x, loss_of)
    assert abs(loss - exact_loss) <= 1e-5 * abs(exact_loss)
    errors = errors_of(results(logits, network.named_parameters(), x), expected)
    if is_sensitive and max(errors.values()) > 1e-5:
        noisy = [errors_of(exact_results(network, x, loss_of, noise=2**-20)[1], expected) for _ in range(8)]
        errors = {name: error for name, error in errors.items() if error > max(each[name] for each in noisy)}
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}


@pytest.mark.parametrize(("settings", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_losses_and_gradients(settings, shape, flags):
    x = torch.randn(shape)
    network = random_network(x, **settings)
    assert Sensitivity.of(network, x).kink > 5e-5
    assert_trains_as_written_out(network, x, is_sensitive=settings is MANY_CLASSES)


@pytest.mark.parametrize("features", CHANNELS, ids=str)
def test_any_number_of_channels(features, flags):
    x = torch.randn(1, 1, 3, 8, 10)
    network = random_network(x, **{**TWO_LEVELS, "features": features})
    assert_trains_as_written_out(network, x, is_sensitive=True)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "size"), [(1, (16, 96, 96)), (3, (8, 96, 128))])
def test_the_papers_network(batch, size, flags):
    x = torch.randn(batch, 1, *size)
    network = random_network(x)
    assert Sensitivity.of(network, x).kink > 1e-5
    assert_trains_as_written_out(network, x)


@st.composite
def cases(draw):
    """Settings of a light U-Net that compiled code supports, and the shape of an input."""
    levels = draw(st.integers(2, 4))
    strides = draw(
        st.lists(
            st.tuples(*map(st.sampled_from, ((1, 2, 3), (1, 2, 3), (1, 2)))), min_size=levels - 1, max_size=levels - 1
        )
    )
    kernels = st.tuples(*map(st.sampled_from, ((1, 3, 5), (1, 3, 5), (1, 3))))
    chosen = {
        "features": draw(st.lists(st.integers(1, 40), min_size=levels, max_size=levels)),
        "strides": strides,
        "kernel_sizes": draw(st.lists(kernels, min_size=levels, max_size=levels)),
        "num_classes": draw(st.integers(1, 20)),
        "deep_supervision": draw(st.booleans()),
    }
    total = [prod(steps) for steps in zip(*strides, strict=True)]
    size = [step * draw(st.integers(1, 4)) for step in total]
    assume(prod(size) < 2000 and prod(size) >= 12 * prod(total))  # the coarsest level has 12 voxels or more
    return chosen, (draw(st.integers(1, 3)), draw(st.integers(1, 3)), *size), draw(st.integers(0, 2**32))


@settings(deadline=None)  # 100 networks; `make test-full` draws 2,000
@given(cases())
def test_random_networks(case):
    chosen, shape, seed = case
    torch.manual_seed(seed)
    x = torch.randn(shape)
    network = random_network(x, **chosen)
    sensitivity = Sensitivity.of(network, x)
    note(str(sensitivity))
    assume(sensitivity.kink > 5e-5 and sensitivity.offset < 10)
    assert_trains_as_written_out(network, x, is_sensitive=True)


def test_gradients_are_finite_differences(flags):
    """Of the compiled losses alone: a step along each gradient changes the loss by its length."""
    x = torch.randn(2, 1, 3, 6, 8)
    network = random_network(x, **TWO_LEVELS)
    named = {**dict(network.named_parameters()), "input": x.requires_grad_()}
    gradients = torch.autograd.grad(loss_of(run_compiled(network, x)), list(named.values()))
    for (name, tensor), gradient in zip(named.items(), gradients, strict=True):
        if is_zero_by_construction(name):
            assert not gradient.any()
            gradient = torch.randn_like(gradient)
        start, length, losses = tensor.detach().clone(), gradient.norm(), []
        # Also where all values are small: the change of the loss has to be larger than its rounding.
        step = 2e-3 * start.abs().max().clamp(min=1) * gradient / length
        with torch.no_grad():
            for sign in (1, -1):
                tensor.copy_(start + sign * step)
                losses.append(loss_of(network(x)).item())
            tensor.copy_(start)
        change = (losses[0] - losses[1]) / (2 * step.norm().item())
        if is_zero_by_construction(name):
            assert abs(change) < 1e-4
        else:
            assert change == pytest.approx(length.item(), rel=0.005), name


def test_a_single_voxel_at_the_coarsest_level(flags):
    """Normalised, it is 0 whatever its value, and the gradients that arrive there are the rest of a cancellation."""
    x = torch.randn(2, 1, 1, 2, 2, requires_grad=True)
    network = random_network(x.detach(), **TWO_LEVELS)
    logits = run_compiled(network, x)
    loss_of(logits).backward()
    for found, exact in zip(logits, written_out(network, parameters_of(network), x.double()), strict=True):
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()
    assert all(value.isfinite().all() for value in results(logits, network.named_parameters(), x).values())


def test_a_constant_input_has_finite_gradients(flags):
    """Air: away from the borders, all values of a channel are the same."""
    x = torch.full((1, 1, 4, 12, 16), -3.0)
    network = random_network(torch.randn_like(x), **TWO_LEVELS)
    loss_of(run_compiled(network, x)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("levels", [(0,), (1,), (0, 1)], ids=str)
def test_levels_without_a_loss(levels, flags):
    """Their heads have no gradient; nor have the parts of the decoder that only a finer level uses."""
    settings = {**THREE_LEVELS, "features": (4, 8, 6), "strides": ((1, 2, 2), (1, 2, 2)), "num_classes": 4}
    x = torch.randn(2, 2, 3, 8, 24)
    assert_trains_as_written_out(
        random_network(x, **settings), x, lambda logits: loss_of([logits[level] for level in levels])
    )


@pytest.mark.parametrize("layout", ["default", "channels last", "a slice"])
def test_layouts_of_inputs_and_gradients(layout):
    """The gradient of a mean is one number, expanded; that of a permuted tensor is permuted."""
    x = torch.randn(2, 2, 4, 8, 12)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    elif layout == "a slice":
        x = torch.randn(2, 2, 4, 12, 16).transpose(3, 4)[:, :, :, ::2]
    network = random_network(x, **{**THREE_LEVELS, "strides": ((1, 2, 2), (1, 2, 1))})

    def total(logits):
        fine, coarse = (each.double() for each in logits)
        return fine[:, 1].mean() + coarse.movedim(1, -1).cos().mean()

    assert_trains_as_written_out(network, x, total, is_sensitive=True)


def test_frozen_parameters_have_no_gradient_and_the_others_the_same():
    x = torch.randn(1, 1, 4, 6, 10)
    network = random_network(x, **TWO_LEVELS)
    for number, parameter in enumerate(network.parameters()):
        parameter.requires_grad_(number % 3 != 1)
    assert_trains_as_written_out(network, x)


def test_a_frozen_network_gives_the_gradient_of_its_input():
    x = torch.randn(1, 1, 4, 6, 10)
    assert_trains_as_written_out(random_network(x, **TWO_LEVELS).requires_grad_(False), x)


def test_evaluation_with_gradients_gives_the_finest_level():
    x = torch.randn(1, 1, 4, 6, 10)
    network = random_network(x, **THREE_LEVELS | {"strides": ((1, 2, 1), (2, 1, 2))}).eval()
    logits = network(x)
    assert logits.grad_fn is not None
    torch.testing.assert_close(logits, network.train()(x)[0], rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(network(x)[0], logits)


@pytest.mark.parametrize(("settings", "shape"), [NETWORKS["as for two cores"], (TWO_LEVELS, (3, 2, 5, 34, 22))])
def test_any_number_of_threads_gives_the_same_bits(settings, shape, flags):
    x = torch.randn(shape, requires_grad=True)
    network = LightUNet(in_channels=shape[1], **settings).train()
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            logits = run_compiled(network, x)
            gradients = torch.autograd.grad(loss_of(logits), [x, *network.parameters()])
            results.append([*logits, *gradients])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))
