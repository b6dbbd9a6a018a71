"""Compiled code in autograd's graphs: one backward pass each, in any order and thread, with memory that is reused."""

import gc
import threading

import pytest
import torch
import torch.utils.checkpoint

from dlunet.native.memory import BLOCKS
from dlunet.networks import LightUNet, compiled
from tests.native.variants import needs_compiler

pytestmark = needs_compiler

SHAPE = (2, 1, 4, 6, 10)


def make(**settings):
    torch.manual_seed(0)
    default = {"features": (4, 12), "strides": ((1, 2, 2),), "kernel_sizes": ((1, 3, 3), (3, 3, 3)), "num_classes": 3}
    return LightUNet(**{**default, **settings}).train()


def run(network, x):
    (logits,) = network(x)
    assert type(logits.grad_fn).__name__ == "_CompiledBackward"
    return logits.square().mean()


@pytest.fixture
def network():
    return make()


def gradients(network, x):
    return torch.autograd.grad(run(network, x), list(network.parameters()))


def same(ones, others):
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def unused_programs(network):
    return sum(map(len, compiled._programs.get(network, {}).values()))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_graphs_alive_at_the_same_time_in_any_order(order, network):
    inputs = [torch.randn(SHAPE), torch.randn(SHAPE), torch.randn(1, 1, 2, 4, 6)]
    alone = [gradients(network, x) for x in inputs]
    losses = [run(network, x) for x in inputs]
    for place in order:
        assert same(torch.autograd.grad(losses[place], list(network.parameters())), alone[place])


def test_one_backward_pass_through_several_forward_passes(network):
    """As in cross pseudo supervision, which adds losses of several batches."""
    inputs = [torch.randn(SHAPE) for _ in range(3)]
    alone = [gradients(network, x) for x in inputs]
    sum(run(network, x) for x in inputs).backward()
    for parameter, *parts in zip(network.parameters(), *alone, strict=True):
        torch.testing.assert_close(parameter.grad, sum(parts))


def test_predictions_between_forward_and_backward_pass_change_nothing(network):
    x = torch.randn(SHAPE)
    expected, loss = gradients(network, x), run(network, x)
    with torch.no_grad():
        network(torch.randn(SHAPE))
        network.eval()(torch.randn(SHAPE))
    assert same(torch.autograd.grad(loss, list(network.parameters())), expected)


def test_two_threads_use_one_network(network):
    inputs, found, meeting = [torch.randn(SHAPE) for _ in range(2)], {}, threading.Barrier(2, timeout=60)
    alone = [gradients(network, x) for x in inputs]

    def work(number):
        meeting.wait()
        found[number] = [gradients(network, inputs[number]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(found[number]) == 20 and all(same(each, alone[number]) for each in found[number])


def test_memory_does_not_grow(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        run(network, torch.randn(SHAPE)).backward()
        optimizer.step()
        with torch.no_grad():
            network.eval()(torch.randn(SHAPE))
        network.train()

    step()
    gc.collect()
    blocks, programs = [len(block) for block in BLOCKS._free], unused_programs(network)
    addresses = {block.data_ptr() for block in BLOCKS._free}
    for _ in range(20):
        step()
        assert sorted(len(block) for block in BLOCKS._free) == sorted(blocks)
        assert {block.data_ptr() for block in BLOCKS._free} == addresses
        assert unused_programs(network) == programs == 2 * SHAPE[0]


def test_a_graph_without_backward_pass_frees_its_memory(network):
    loss = run(network, torch.randn(SHAPE))
    free, programs = len(BLOCKS._free), unused_programs(network)
    del loss
    assert len(BLOCKS._free) == free + SHAPE[0] and unused_programs(network) == programs + SHAPE[0]


def test_after_the_backward_pass_a_kept_graph_holds_no_memory(network):
    loss = run(network, torch.randn(SHAPE))
    free = len(BLOCKS._free)
    loss.backward()
    assert len(BLOCKS._free) == free + SHAPE[0]
    del loss
    gc.collect()
    assert len(BLOCKS._free) == free + SHAPE[0]  # not given back twice: two users would share it


def test_a_network_that_is_gone_leaves_no_program():
    gone = make()
    run(gone, torch.randn(SHAPE)).backward()
    before = len(compiled._programs)
    del gone
    gc.collect()
    assert len(compiled._programs) < before


def test_a_second_backward_pass_is_refused(network):
    loss = run(network, torch.randn(SHAPE))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass; run the network again"):
        loss.backward()
    loss = run(network, torch.randn(SHAPE))
    loss.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_gradients_of_gradients_are_refused(network):
    x = torch.randn(SHAPE, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no second derivatives; PyTorch's layers do, for example in float64"):
        torch.autograd.grad(run(network, x), x, create_graph=True)
    (logits,) = network.double()(x.double())
    (gradient,) = torch.autograd.grad(logits.square().mean(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("what", ["a weight", "a bias", "the input"])
def test_a_change_between_forward_and_backward_pass_is_noticed(what, network):
    x = torch.randn(SHAPE)
    loss = run(network, x)
    stage = network.encoder[1]
    with torch.no_grad():
        {"a weight": stage.conv1[0].weight, "a bias": stage.norm2.bias, "the input": x}[what].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_of_some_parameters_only(network):
    x = torch.randn(SHAPE)
    expected = gradients(network, x)[5]
    (found,) = torch.autograd.grad(run(network, x), [list(network.parameters())[5]])
    assert torch.equal(found, expected)


def test_gradients_accumulate(network):
    x = torch.randn(SHAPE)
    expected = gradients(network, x)
    for _ in range(2):
        run(network, x).backward()
    assert same([parameter.grad for parameter in network.parameters()], [2 * each for each in expected])


def test_parameters_updated_between_steps_are_used(network):
    x = torch.randn(SHAPE)
    before = run(network, x).item()
    with torch.no_grad():
        network.decoder[0]["head"].weight.mul_(2)
    assert run(network, x).item() == pytest.approx(4 * before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant, network):
    x = torch.randn(SHAPE, requires_grad=True)
    (expected,) = torch.autograd.grad(run(network, x), x)
    (logits,) = torch.utils.checkpoint.checkpoint(lambda x: tuple(network(x)), x, use_reentrant=reentrant)
    logits.square().mean().backward()
    assert torch.equal(x.grad, expected)
