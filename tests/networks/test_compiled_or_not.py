"""When compiled code runs a light U-Net, and when PyTorch's layers do; users see no other difference."""

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode

from dlunet.networks import LightUNet, compiled
from dlunet.networks.layers import PointwiseConv3d
from tests.native.variants import needs_compiler

CUBE, FLAT = (3, 3, 3), (1, 3, 3)
SETTINGS = {"features": (4, 12), "strides": ((1, 2, 2),), "kernel_sizes": (FLAT, CUBE), "num_classes": 3}


def make(kind=LightUNet, **settings):
    torch.manual_seed(0)
    return kind(**{**SETTINGS, **settings}).train()


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(1, 1, 4, 6, 10)


def is_compiled(network, x):
    logits = network(x)[0]
    return type(logits.grad_fn).__name__ == "_CompiledBackward"


def by_layers(network, x):
    return network.decode(network.encode(x))


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * other.abs().max().item())


@needs_compiler
def test_training_and_prediction_are_compiled(x):
    network = make()
    assert is_compiled(network, x)
    assert_close(network(x), by_layers(network, x))
    assert type(network.eval()(x).grad_fn).__name__ == "_CompiledBackward"
    with torch.no_grad():
        assert torch.equal(network(x), compiled.compiled_forward(network, x))


@needs_compiler
def test_layers_are_run_with_autocast(x):
    network = make()
    exact = network(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)[0]
    assert logits.dtype == torch.bfloat16 and (logits.float() - exact).norm() < 0.05 * exact.norm()
    with torch.autocast("cpu", enabled=False):
        assert is_compiled(network, x)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_are_run_in_other_precisions(dtype, x):
    network = make()
    exact = network(x)[0]
    assert not is_compiled(network.to(dtype), x.to(dtype))
    assert (network(x.to(dtype))[0].float() - exact).norm() < 0.05 * exact.norm()
    assert is_compiled(network.float(), x)


@needs_compiler
@pytest.mark.parametrize(
    "register",
    [
        lambda layer, called: layer.register_forward_hook(lambda *_: called.append(1)),
        lambda layer, called: layer.register_forward_pre_hook(lambda *_: called.append(1)),
        lambda layer, called: layer.register_full_backward_hook(lambda *_: called.append(1)),
        lambda layer, called: layer.register_full_backward_pre_hook(lambda *_: called.append(1)),
    ],
    ids=["forward", "forward, before", "backward", "backward, before"],
)
def test_hooks_on_inner_layers_are_called(register, x):
    network, called = make(), []
    handle = register(network.decoder[0]["stage"].conv1[1], called)
    network(x.requires_grad_())[0].square().mean().backward()
    assert called == [1]
    handle.remove()
    assert is_compiled(network, x)


@needs_compiler
def test_hooks_on_the_network_are_called_with_compiled_code(x):
    network, called = make(), []
    network.register_forward_hook(lambda *_: called.append("forward"))
    network.register_full_backward_hook(lambda *_: called.append("backward"))
    network.eval()(x).square().mean().backward()
    assert called == ["forward", "backward"]


@needs_compiler
def test_operations_are_counted(x):
    network = make()
    with FlopCounterMode(display=False) as counter:
        network(x)
    with FlopCounterMode(display=False) as expected:
        by_layers(network, x)
    assert counter.get_total_flops() == expected.get_total_flops() > 0


@needs_compiler
def test_exported_graphs_contain_the_layers(x):
    network = make().eval()
    with torch.no_grad():
        exported = torch.export.export(network, (x,))
        torch.testing.assert_close(exported.module()(x), network(x), rtol=0, atol=1e-4)
    assert "convolution" in str(exported.graph) or "conv3d" in str(exported.graph)


@needs_compiler
@pytest.mark.parametrize(
    "settings", [{"strides": ((1, 2, 3),)}, {"kernel_sizes": (FLAT, (3, 3, 5))}], ids=["stride", "kernel"]
)
def test_layers_are_run_for_other_strides_and_kernels(settings):
    network, x = make(**settings), torch.randn(1, 1, 2, 4, 12)
    assert not is_compiled(network, x)
    network(x)[0].square().mean().backward()
    assert network.encoder[0].conv1[0].weight.grad.abs().max() > 0


class Doubled(LightUNet):
    def decode(self, features):
        return [2 * logits for logits in super().decode(features)]


class Shifted(LightUNet):
    def encode(self, x):
        return super().encode(x + 1)


class Named(LightUNet):
    """Changes nothing."""


class OwnNorm(nn.InstanceNorm3d):
    pass


@needs_compiler
def test_subclasses_that_compute_otherwise(x):
    plain = make()
    assert not is_compiled(make(Doubled), x) and not is_compiled(make(Shifted), x)
    assert_close(make(Doubled)(x), [2 * each for each in plain(x)])
    assert_close(make(Shifted)(x), plain(x + 1))
    assert is_compiled(make(Named), x)


@needs_compiler
def test_layers_of_other_classes(x):
    network = make()
    network.encoder[0].norm1 = OwnNorm(4, affine=True)
    assert not is_compiled(network, x)
    network = make()
    parametrizations.weight_norm(network.encoder[0].conv1[1])
    assert not is_compiled(network, x)
    network = make()
    prune.l1_unstructured(network.encoder[1].conv2[1], "weight", 0.5)
    assert not is_compiled(network, x)


@needs_compiler
def test_a_network_trains_and_predicts_after_copying_and_saving(x):
    network = make()
    expected = network(x)  # with a program, which must not be copied or saved
    saved = io.BytesIO()
    torch.save(network.state_dict(), saved)
    saved.seek(0)
    loaded = make()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    loaded(x)
    loaded.load_state_dict(torch.load(saved, weights_only=True))
    whole = io.BytesIO()
    torch.save(network, whole)
    whole.seek(0)
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    for other in (copy.deepcopy(network), loaded, torch.load(whole, weights_only=False), averaged):
        logits = other(x)
        assert all(torch.equal(one, two) for one, two in zip(logits, expected, strict=True))
        logits[0].square().mean().backward()
        assert all(parameter.grad is None for parameter in network.parameters())
        inner = getattr(other, "module", other)
        assert inner.encoder[0].conv1[1].weight.grad.abs().max() > 0


@needs_compiler
def test_a_copy_during_a_graph_is_independent(x):
    network = make()
    loss = network(x)[0].square().mean()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.encoder[0].conv1[1].weight.zero_()
    other(x)[0].square().mean().backward()
    loss.backward()
    again = make()
    again(x)[0].square().mean().backward()
    assert torch.equal(network.encoder[0].conv1[1].weight.grad, again.encoder[0].conv1[1].weight.grad)


def test_names_and_state_dict_are_those_of_the_layers():
    stage = [
        f"{layer}.{name}"
        for conv, norm in (("conv1", "norm1"), ("conv2", "norm2"))
        for layer in (f"{conv}.0", f"{conv}.1", norm)
        for name in ("weight", "bias")
    ]
    expected = [f"encoder.{level}.{name}" for level in range(2) for name in stage]
    expected += ["decoder.0.up.0.weight", "decoder.0.up.1.weight"]
    expected += [f"decoder.0.stage.{name}" for name in stage] + ["decoder.0.head.weight"]
    network = make()
    assert [name for name, _ in network.named_parameters()] == expected == list(network.state_dict())


def test_layers_are_run_without_a_compiler(empty_cache, x, monkeypatch, caplog):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    network = make()
    assert not is_compiled(network, x)
    assert all(torch.equal(one, other) for one, other in zip(network(x), by_layers(network, x), strict=True))
    assert caplog.text == ""


def test_a_failing_compiler_is_reported_once(empty_cache, x, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/bin/false")
    for _ in range(3):
        network = make()
        assert not is_compiled(network, x)
        network(x)[0].square().mean().backward()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "compiled code cannot be used: /bin/false fails" in caplog.text


@needs_compiler
def test_one_openmp_thread_in_a_new_process(x, tmp_path):
    """Gives the bits that this process gives."""
    network = make()
    torch.save({"state": network.state_dict(), "x": x}, tmp_path / "given.pt")
    script = (
        "import sys, torch; from dlunet.networks import LightUNet; given = torch.load(sys.argv[1]);"
        f"network = LightUNet(**{SETTINGS!r}).train(); network.load_state_dict(given['state']);"
        "assert torch.get_num_threads() == 1; logits = network(given['x'])[0]; logits.square().mean().backward();"
        "assert type(logits.grad_fn).__name__ == '_CompiledBackward';"
        "torch.save([parameter.grad for parameter in network.parameters()], sys.argv[2])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "given.pt"), str(tmp_path / "found.pt")]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    network(x)[0].square().mean().backward()
    for parameter, found in zip(network.parameters(), torch.load(tmp_path / "found.pt"), strict=True):
        assert torch.equal(parameter.grad, found)


# What follows are networks whose parameters or inputs are not those that the program was made for.


@needs_compiler
@pytest.mark.parametrize("how", ["assigned by load_state_dict", "set", "given by functional_call"])
def test_replaced_parameters_are_used(how, x):
    network = make()
    network(x)[0].sum().backward()
    network.zero_grad()
    others = {name: (1.5 * value + 0.1).requires_grad_() for name, value in network.state_dict().items()}
    expected = make()
    expected.load_state_dict(others)
    expected = by_layers(expected, x)
    if how == "given by functional_call":
        return assert_close(torch.func.functional_call(network, others, (x,)), expected)
    if how == "set":
        for name, value in others.items():
            layer, _, own = name.rpartition(".")
            setattr(network.get_submodule(layer), own, nn.Parameter(value.detach()))
    else:
        network.load_state_dict(others, assign=True)
    logits = network(x)
    assert_close(logits, expected)
    logits[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    return None


@needs_compiler
def test_a_new_head_is_used(x):
    """As for another set of labels."""
    network = make()
    network(x)
    network.decoder[0]["head"] = PointwiseConv3d(4, 7, bias=False)
    assert_close(network(x), by_layers(network, x))


@needs_compiler
@pytest.mark.parametrize("own", [1, 2])
def test_a_wrong_number_of_channels_is_refused(own):
    with pytest.raises((ValueError, RuntimeError), match="channels"):
        make(in_channels=own)(torch.randn(1, 3 - own, 4, 6, 10))


@needs_compiler
def test_parameters_in_another_memory_layout(x):
    network = make()
    weight = network.encoder[1].conv2[1].weight
    weight.data = weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    assert_close(network(x), by_layers(network, x))


@needs_compiler
def test_layers_that_are_used_twice(x):
    network = make(features=(4, 4), kernel_sizes=(CUBE, CUBE))
    network.encoder[1].conv2 = network.encoder[0].conv2
    shared = network.encoder[0].conv2[1].weight
    found, expected = (
        torch.autograd.grad(run(x)[0].square().mean(), shared)[0] for run in (network, lambda x: by_layers(network, x))
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


@needs_compiler
def test_another_slope_is_used(x):
    network = make()
    for layer in network.modules():
        if isinstance(layer, nn.LeakyReLU):
            layer.negative_slope = 0.2
    assert_close(network(x), by_layers(network, x))


@needs_compiler
def test_hooks_on_all_modules_are_called(x):
    called = []
    handle = nn.modules.module.register_module_forward_hook(lambda layer, *_: called.append(layer))
    network = make()
    try:
        network(x)
    finally:
        handle.remove()
    assert network.encoder[0].conv1[0] in called
