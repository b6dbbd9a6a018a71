"""The Triton kernels of `benchmarks/` compared with PyTorch in float64, on a GPU or in Triton's interpreter."""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
depthwise = pytest.importorskip("benchmarks.depthwise_triton").depthwise
normalise = pytest.importorskip("benchmarks.norm_triton").normalise

#: The precision of input and output, relative to the largest value; sums are in float32.
PRECISIONS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
KERNELS, STRIDES = list(itertools.product((1, 3), repeat=3)), list(itertools.product((1, 2), repeat=3))
#: Half precision with the light network's kernels and strides.
CONVOLUTIONS = [
    *itertools.product(KERNELS, STRIDES, [torch.float32]),
    *itertools.product([(1, 3, 3)], [(1, 1, 1)], [torch.float16, torch.bfloat16]),
    *itertools.product([(3, 3, 3)], [(1, 1, 1), (1, 2, 2), (2, 2, 2)], [torch.float16, torch.bfloat16]),
]
#: By batch and channels; 15 planes take two programs.
CONVOLVED = {(2, 2): (15, 3, 4)} if INTERPRETED else {(1, 1): (1, 2, 3), (1, 40): (5, 9, 7), (3, 5): (33, 17, 20)}
NORMALISED = [(1, 1, 3, 5, 7), (2, 4, 1, 2, 4), (3, 5, 17, 20, 25), (2, 3, 16, 16, 16)]
EPS = 1e-5


def results(function, x, parameters, incoming):
    """Output and gradients, for an incoming gradient that differs from voxel to voxel."""
    x, *parameters = (value.detach().clone().requires_grad_() for value in (x, *parameters))
    output = function(x, *parameters)
    return [output.detach(), *torch.autograd.grad(output, (x, *parameters), incoming.to(output.dtype))]


def assert_same(function, reference, x, parameters):
    """Compare a function with a reference in float64, given the same rounded input."""
    expected = reference(x.double(), *(value.double() for value in parameters))
    incoming = torch.randn_like(expected).to(x.dtype)
    found = results(function, x, parameters, incoming)
    assert [value.dtype for value in found] == [x.dtype, x.dtype, torch.float32, torch.float32]
    expected = results(reference, x.double(), [value.double() for value in parameters], incoming)
    for ours, theirs in zip(found, expected, strict=True):
        atol = PRECISIONS[x.dtype] * max(theirs.abs().max().item(), 1e-2)
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize(("kernel", "stride", "dtype"), CONVOLUTIONS, ids=str)
def test_depthwise_convolution(kernel, stride, dtype):
    torch.manual_seed(0)
    for (batch, channels), size in CONVOLVED.items():
        parameters = torch.randn(channels, 1, *kernel, device=DEVICE), torch.randn(channels, device=DEVICE)
        padding = [length // 2 for length in kernel]
        assert_same(
            lambda x, weight, bias: depthwise(x, weight, bias, stride),
            lambda x, w, b, padding=padding, c=channels: F.conv3d(x, w, b, stride, padding, groups=c),
            torch.randn(batch, channels, *size, device=DEVICE).to(dtype),
            parameters,
        )


def test_depthwise_convolution_of_other_layouts():
    x, weight, bias = (torch.randn(shape, device=DEVICE) for shape in ((2, 3, 4, 5, 6), (3, 1, 3, 3, 3), (3,)))
    for same in (x.contiguous(memory_format=torch.channels_last_3d), torch.cat([x, x], 4)[..., :6]):
        assert torch.equal(depthwise(same, weight, bias, (1, 2, 2)), depthwise(x, weight, bias, (1, 2, 2)))


def test_depthwise_gradients_are_the_same_in_every_run():
    x, weight, bias = (torch.randn(shape, device=DEVICE) for shape in ((2, 3, 17, 9, 9), (3, 1, 3, 3, 3), (3,)))
    runs = [results(lambda *a: depthwise(*a, (1, 1, 1)), x, (weight, bias), x) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="PyTorch's autocast of a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_decides_the_precision_of_a_depthwise_convolution(dtype):
    x, weight, bias = (torch.randn(shape, device=DEVICE) for shape in ((1, 3, 4, 5, 6), (3, 1, 3, 3, 3), (3,)))
    with torch.autocast("cuda", dtype):
        output, *gradients = results(lambda *a: depthwise(*a, (1, 1, 1)), x, (weight, bias), x)
    assert output.dtype == dtype
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("shape", NORMALISED, ids=str)
@pytest.mark.parametrize("slope", [0.01, 1.0])
def test_norm_with_activation(shape, slope, dtype):
    torch.manual_seed(0)
    assert_same(
        lambda x, weight, bias: normalise(x, weight, bias, EPS, slope),
        lambda x, weight, bias: F.leaky_relu(F.group_norm(x, shape[1], weight, bias, EPS), slope),
        (3 + 2 * torch.randn(shape, device=DEVICE)).to(dtype),
        torch.randn(2, shape[1], device=DEVICE),
    )


def test_norm_of_a_mean_far_from_zero():
    x = 1000 + torch.randn(1, 2, 10, 20, 30, device=DEVICE)
    found = normalise(x, torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE), EPS, 1.0)
    torch.testing.assert_close(found.double(), F.instance_norm(x.double()), rtol=0, atol=1e-3)
