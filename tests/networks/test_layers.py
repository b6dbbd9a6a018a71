"""The light network's layers against the PyTorch layers they stand in for."""

import pytest
import torch
from torch import nn

from dlunet.networks.layers import DepthwiseConv3d, InstanceNorm3d

CHANNELS = 5
LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last_3d}


def results(layer, x, layout, input_gradient=True):
    """Output and gradients of a layer under a loss whose gradient differs from voxel to voxel."""
    x = x.detach().clone(memory_format=layout).requires_grad_(input_gradient)
    output = layer(x)
    output.pow(3).sum().backward()
    found = {"output": output.detach(), "weight": layer.weight.grad, "bias": layer.bias.grad}
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


def test_instance_norm_has_the_papers_epsilon():
    """A channel of variance v comes out with variance v / (v + ε)."""
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
