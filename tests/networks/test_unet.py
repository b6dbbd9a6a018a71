"""The networks compared with the paper: size, cost, and every layer written out from its description."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dlunet.networks import LightUNet, PlainUNet

FEATURES = (32, 64, 128, 256, 320, 320)
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
ONE, CUBE, FLAT = (1, 1, 1), (3, 3, 3), (1, 3, 3)
PATCH = (1, 1, 56, 160, 160)
SMALL = {"features": (2, 3, 4, 5, 6, 6), "num_classes": 3}
NETWORKS = pytest.mark.parametrize("kind", [LightUNet, PlainUNet])


@pytest.mark.parametrize(
    ("kind", "parameters", "multiply_adds"), [(LightUNet, 1_465_130, 34.78e9), (PlainUNet, 30_767_584, 463.9e9)]
)
def test_size_and_cost_are_the_papers(kind, parameters, multiply_adds):
    with torch.device("meta"):
        network, patch = kind().train(), torch.empty(PATCH)
    assert sum(p.numel() for p in network.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        network(patch)
    assert counter.get_total_flops() / 2 == pytest.approx(multiply_adds, rel=1e-3)


def convolution(kind, inputs, outputs, kernel, stride=ONE, groups=1, bias=True, transposed=False):
    padding = (0, 0, 0) if transposed else tuple(k // 2 for k in kernel)
    return kind, inputs, outputs, kernel, stride, padding, groups, bias


def light_conv(inputs, outputs, kernel, stride=ONE):
    return [convolution("conv", inputs, inputs, kernel, stride, inputs), convolution("conv", inputs, outputs, ONE)]


def plain_conv(inputs, outputs, kernel, stride=ONE):
    return [convolution("conv", inputs, outputs, kernel, stride)]


def light_up(inputs, outputs, stride):
    return [
        convolution("transposed", inputs, inputs, stride, stride, inputs, bias=False, transposed=True),
        convolution("conv", inputs, outputs, ONE, bias=False),
    ]


def plain_up(inputs, outputs, stride):
    return [convolution("transposed", inputs, outputs, stride, stride, bias=False, transposed=True)]


def expected_layers(conv, up):
    """The layers in data-flow order, as the paper's figure 2 and table 2 give them."""

    def stage(inputs, outputs, kernel, stride=ONE):
        end = [("norm", outputs, 1e-5, True), ("leaky", 0.01)]
        return conv(inputs, outputs, kernel, stride) + end + conv(outputs, outputs, kernel) + end

    layers = stage(1, 32, FLAT)
    for inputs, outputs, stride in zip(FEATURES, FEATURES[1:], STRIDES, strict=False):
        layers += stage(inputs, outputs, CUBE, stride)
    for inputs, outputs, stride in zip(FEATURES[::-1], FEATURES[-2::-1], STRIDES[::-1], strict=False):
        layers += up(inputs, outputs, stride) + stage(2 * outputs, outputs, CUBE)
        layers += [convolution("conv", outputs, 14, ONE, bias=False)]
    return layers


def describe(layer):
    if isinstance(layer, nn.InstanceNorm3d):
        return "norm", layer.num_features, layer.eps, layer.affine
    if isinstance(layer, nn.LeakyReLU):
        return "leaky", layer.negative_slope
    kind = "transposed" if isinstance(layer, nn.ConvTranspose3d) else "conv"
    shape = layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding
    return kind, *shape, layer.groups, layer.bias is not None


@pytest.mark.parametrize(("kind", "conv", "up"), [(LightUNet, light_conv, light_up), (PlainUNet, plain_conv, plain_up)])
def test_layers_are_the_papers_in_data_flow_order(kind, conv, up):
    with torch.device("meta"):
        network, patch = kind().train(), torch.empty(1, 1, 16, 64, 64)
    called = []
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda layer, *_: called.append(describe(layer)))
    network(patch)
    assert called == expected_layers(conv, up)


def written_out(kind, network, x):
    """The network as plain function calls on its weights, used in order."""
    weights = iter(list(network.parameters()))

    def conv(x, stride=ONE):
        weight, bias = next(weights), next(weights)
        padding = tuple(k // 2 for k in weight.shape[2:])
        return F.conv3d(x, weight, bias, stride, padding, groups=x.shape[1] // weight.shape[1])

    def separable(x, stride=ONE):
        return conv(conv(x, stride))

    def norm(x):
        return F.instance_norm(x, weight=next(weights), bias=next(weights), eps=1e-5)

    def leaky(x):
        return torch.where(x > 0, x, 0.01 * x)

    def light_stage(x, stride=ONE):
        a = separable(x, stride)
        return leaky(norm_of_sum(a, separable(leaky(norm(a)))))

    def norm_of_sum(a, b):
        return norm(a + b)

    def plain_stage(x, stride=ONE):
        return leaky(norm(conv(leaky(norm(conv(x, stride))))))

    def light_up(x, stride):
        x = F.conv_transpose3d(x, next(weights), stride=stride, groups=x.shape[1])
        return F.conv3d(x, next(weights))

    def plain_up(x, stride):
        return F.conv_transpose3d(x, next(weights), stride=stride)

    stage, up = (light_stage, light_up) if kind is LightUNet else (plain_stage, plain_up)
    skips = [x := stage(x)]
    for stride in STRIDES:
        skips.append(x := stage(x, stride))
    logits = []
    for skip, stride in zip(skips[-2::-1], STRIDES[::-1], strict=True):
        x = stage(torch.cat([up(x, stride), skip], dim=1))
        logits.insert(0, F.conv3d(x, next(weights)))
    assert next(weights, None) is None
    return logits


@NETWORKS
def test_logits_are_those_of_the_network_written_out(kind):
    torch.manual_seed(0)
    network = kind(**SMALL).double().train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()  # including biases and norms, which start at 0 and 1
    x = torch.randn(2, 1, 16, 32, 64, dtype=torch.float64)
    expected = written_out(kind, network, x)
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(network.eval()(x), expected[0])


@NETWORKS
def test_training_gives_every_level_and_evaluation_the_finest(kind):
    with torch.device("meta"):
        network, patch = kind(), torch.empty(PATCH)
    sizes = [(56, 160, 160), (56, 80, 80), (28, 40, 40), (14, 20, 20), (7, 10, 10)]
    assert [level.shape for level in network.train()(patch)] == [(1, 14, *size) for size in sizes]
    assert network.eval()(patch).shape == (1, 14, 56, 160, 160)


@pytest.mark.parametrize("training", [True, False])
def test_encoder_and_decoder_make_up_the_network(training):
    network = LightUNet(**SMALL).train(training).double()  # by the same layers as in parts, not by compiled code
    x = torch.randn(2, 1, 8, 64, 64, dtype=torch.float64)
    features = network.encode(x)
    assert [tuple(f.shape[:3]) for f in features] == [(2, 2, 8), (2, 3, 8), (2, 4, 4), (2, 5, 2), (2, 6, 1), (2, 6, 1)]
    kept = [f.clone() for f in features]
    torch.testing.assert_close(network.decode(features), network(x), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(features, kept, strict=True))  # unchanged by decoding
    dropped = network.decode([*features[:-1], torch.zeros_like(features[-1])])
    assert not torch.equal(dropped[0], network(x)[0])


def test_without_deep_supervision_only_the_finest_level_has_a_head():
    with torch.device("meta"):
        network = LightUNet(
            features=(8, 8, 8), strides=[(2, 2, 2)] * 2, kernel_sizes=[CUBE] * 3, deep_supervision=False
        )
        logits = network.train()(torch.empty(1, 1, 8, 8, 8))
    assert logits.shape == (1, 14, 8, 8, 8)
    assert [name for name, _ in network.named_parameters() if "head" in name] == ["decoder.1.head.weight"]


@NETWORKS
def test_weights_start_from_he_normal_draws_and_biases_from_zero(kind):
    torch.manual_seed(0)
    standardised = []
    for name, layer in kind(features=(16, 32, 64, 64, 64, 64)).named_modules():
        if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
            continue
        assert layer.bias is None or not layer.bias.any()
        values = layer.weight.detach().flatten()
        z = values / math.sqrt(2 / (1 + 0.01**2) / layer.weight[0].numel())
        assert z.std() == pytest.approx(1, abs=5 / math.sqrt(2 * len(z))), name
        standardised.append(z[:200])
    assert stats.kstest(torch.cat(standardised).numpy(), "norm").pvalue > 0.01


def test_two_networks_start_from_different_draws():
    convolutions = [
        [weight for name, weight in LightUNet(**SMALL).named_parameters() if weight.ndim == 5] for _ in range(2)
    ]
    assert not any(torch.equal(first, second) for first, second in zip(*convolutions, strict=True))


@pytest.mark.parametrize("size", [(12, 32, 32), (16, 48, 32), (16, 32, 40)])
def test_a_patch_that_is_no_multiple_of_the_total_stride_is_refused(size):
    with torch.device("meta"), pytest.raises(ValueError, match=r"total stride \(8, 32, 32\)"):
        LightUNet(**SMALL)(torch.empty(1, 1, *size))


@pytest.mark.parametrize("wrong", [{"features": (8, 8)}, {"strides": STRIDES[:4]}, {"kernel_sizes": [CUBE] * 5}])
def test_settings_that_do_not_fit_together_are_refused(wrong):
    with pytest.raises(ValueError, match="expected one kernel size per stage"):
        LightUNet(**wrong)


@pytest.mark.parametrize("kind", [LightUNet, PlainUNet])
def test_a_unet_of_one_stage_is_refused(kind):
    with pytest.raises(ValueError, match="found a U-Net of one stage; expected two or more; choose a larger patch"):
        kind(features=(4,), strides=(), kernel_sizes=(CUBE,))


def test_mixed_precision_changes_logits_little_and_reaches_every_weight_but_the_unused_heads():
    torch.manual_seed(0)
    network, x = LightUNet(**SMALL).train(), torch.randn(1, 1, 16, 32, 64)
    exact = network(x)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)[0]
    assert (logits.float() - exact).norm() < 0.05 * exact.norm()
    logits.float().square().sum().backward()
    # In bfloat16 on a CPU, PyTorch 2.13 computes some gradients of depthwise convolutions from uninitialised memory, so
    # that they are occasionally NaN. Where kernels are larger than 1, only the presence of gradients is checked.
    without = {
        name
        for name, p in network.named_parameters()
        if p.grad is None or not (p.grad.isfinite().all() or (p.ndim == 5 and p.shape[2:].numel() > 1))
    }
    assert without == {f"decoder.{level}.head.weight" for level in range(4)}
