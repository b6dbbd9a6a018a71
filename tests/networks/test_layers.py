"""The light network's layers compared with the PyTorch layers they replace."""

import pytest
import torch
from torch import nn

from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d, PointwiseConv3d, SeparableUpsampling

CHANNELS = 5
LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last_3d}


def results(layer, x, layout, input_gradient=True):
    """Output and gradients of a layer under a loss whose gradient differs from voxel to voxel."""
    x = x.detach().clone(memory_format=layout).requires_grad_(input_gradient)
    output = layer(x)
    output.pow(3).sum().backward()
    found = {"output": output.detach()} | {name: value.grad for name, value in layer.named_parameters()}
    return {**found, "x": x.grad} if input_gradient else found


def assert_same(layer, reference, layout=torch.contiguous_format, input_gradient=True):
    """Compare the float32 layer with PyTorch's own in float64, to 1e-5 of the largest value."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    reference.load_state_dict(layer.state_dict())  # strict: same keys and shapes
    x = 0.5 + torch.randn(2, CHANNELS, 6, 7, 8)
    found = results(layer, x, layout, input_gradient)
    expected = results(reference.double(), x.double(), torch.contiguous_format, input_gradient)
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=0, atol=1e-5 * value.abs().max().item(), msg=name)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 3)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3)])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_depthwise_convolution_equals_pytorch(kernel, stride, layout, input_gradient):
    padding = tuple(k // 2 for k in kernel)
    reference = nn.Conv3d(CHANNELS, CHANNELS, kernel, stride, padding, groups=CHANNELS)
    assert_same(DepthwiseConv3d(CHANNELS, kernel, stride), reference, layout, input_gradient)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_instance_norm_equals_pytorch(layout):
    assert_same(InstanceNorm3d(CHANNELS), nn.InstanceNorm3d(CHANNELS, eps=1e-5, affine=True), layout)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_instance_norm_of_a_whole_patch_is_exact_in_prediction(layout):
    """Squares summed one by one in float32 would be off by 1e-3 here."""
    x = (3 + 2 * torch.randn(1, 2, 56, 160, 160)).contiguous(memory_format=layout)
    reference = nn.InstanceNorm3d(2, affine=True).double()
    with torch.inference_mode():
        torch.testing.assert_close(InstanceNorm3d(2)(x).double(), reference(x.double()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weights", ["of 16 bits", "in autocast"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_instance_norm_in_16_bits_is_that_of_float32_to_their_rounding(dtype, weights):
    """Sums of squares over a slice are beyond the range of float16, and far beyond the digits of bfloat16."""
    x = (30 + 10 * torch.randn(1, 2, 4, 64, 64)).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    is_cast = weights == "in autocast"
    norm = InstanceNorm3d(2) if is_cast else InstanceNorm3d(2).to(dtype)
    with torch.inference_mode():
        with torch.autocast("cpu", dtype, enabled=is_cast):
            found, of_float32 = norm(x), norm(x.float())
        expected = InstanceNorm3d(2)(x.float())
    assert found.dtype == dtype and (found.float() - expected).abs().max() < 0.05
    assert (of_float32.float() - expected).abs().max() < 0.05


def test_instance_norm_of_a_constant_is_zero_in_prediction():
    with torch.inference_mode():
        assert InstanceNorm3d(2)(torch.full((1, 2, 4, 5, 6), 1e3)).abs().max() < 1e-2


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolution_equals_pytorch(layout, bias):
    assert_same(PointwiseConv3d(CHANNELS, 3, bias), nn.Conv3d(CHANNELS, 3, 1, bias=bias), layout)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (1, 2, 3)])
def test_upsampling_equals_pytorch(stride, layout):
    reference = nn.Sequential(
        nn.ConvTranspose3d(CHANNELS, CHANNELS, stride, stride, groups=CHANNELS, bias=False),
        nn.Conv3d(CHANNELS, 3, 1, bias=False),
    )
    assert_same(SeparableUpsampling(CHANNELS, 3, stride), reference, layout)


def test_results_stay_channels_last_also_after_a_single_channel():
    """PyTorch cannot distinguish the layouts of a single channel and would continue in the slow one."""
    x = torch.randn(1, 1, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    for layer in (PointwiseConv3d(1, 4), SeparableUpsampling(1, 4, (1, 2, 2))):
        assert layer(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_instance_norm_has_the_papers_epsilon():
    """A channel of variance v has variance v / (v + ε) in the output."""
    x = 1e-3 * torch.randn(1, 1, 20, 20, 20, dtype=torch.float64)
    variance = x.var(correction=0)
    torch.testing.assert_close(InstanceNorm3d(1).double()(x).var(correction=0), variance / (variance + 1e-5))


@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 3)])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3)])
def test_depthwise_gradients_are_those_of_its_output(kernel, stride):
    layer = DepthwiseConv3d(2, kernel, stride).double()
    x = torch.randn(1, 2, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def convolve(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(convolve, (x, layer.weight, layer.bias))
