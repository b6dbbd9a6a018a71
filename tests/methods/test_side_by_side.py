"""Networks run at the same time, each on its own cores."""

import threading

import pytest
import torch

from dlunet.methods.side_by_side import side_by_side


@pytest.fixture
def cores(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("cores", [1, 2, 5], indirect=True)
def test_results_are_those_of_map(cores):
    assert side_by_side(lambda base, power: base**power, (2, 3), (5, 4)) == [32, 81]
    assert torch.get_num_threads() == cores


@pytest.mark.parametrize("cores", [2, 5], indirect=True)
def test_calls_run_at_the_same_time_with_a_share_of_the_cores_each(cores):
    meeting = threading.Barrier(2, timeout=30)  # breaks unless both arrive

    def meet(_):
        meeting.wait()
        return torch.get_num_threads()

    side_by_side(lambda _: meeting.wait(), "ab")
    torch.set_num_threads(cores)  # must not reach pool threads that have not read their number yet
    assert side_by_side(meet, "ab") == [cores // 2] * 2


@pytest.mark.parametrize("cores", [1], indirect=True)
def test_one_core_is_not_shared(cores):
    assert side_by_side(lambda _: threading.get_ident(), "ab") == [threading.get_ident()] * 2


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_mixed_precision_and_errors_pass_through(cores):
    weight = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        products = side_by_side(lambda factor: (factor * weight) @ weight, (1, 2))
    assert [product.dtype for product in products] == [torch.bfloat16] * 2
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda value: 1 / value, (1, 0))


@pytest.mark.parametrize("cores", [1, 2], indirect=True)
def test_gradients_are_computed_only_where_the_caller_wants_them(cores):
    weight = torch.ones(2, requires_grad=True)
    for wanted in (False, True):
        with torch.set_grad_enabled(wanted):
            products = side_by_side(lambda factor: factor * weight, (1, 2))
        assert [product.requires_grad for product in products] == [wanted] * 2


@pytest.mark.parametrize("cores", [2], indirect=True)
def test_gradients_are_those_of_one_backward_pass(cores):
    torch.manual_seed(0)
    networks = [torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv3d(4, 1, 3)) for _ in "ab"]
    patch = torch.randn(1, 1, 12, 12, 12)
    parameters = [parameter for network in networks for parameter in network.parameters()]
    expected = torch.autograd.grad(sum(network(patch).square().mean() for network in networks), parameters)
    losses = side_by_side(lambda network: network(patch).square().mean(), networks)
    side_by_side(torch.Tensor.backward, losses)
    torch.testing.assert_close([parameter.grad for parameter in parameters], list(expected))
