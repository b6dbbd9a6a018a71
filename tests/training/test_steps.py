"""The steps of a run: what a method is given in each, and what becomes of the gradients of its networks."""

from types import SimpleNamespace

import pytest
import torch

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.methods import Method, Stream, Trained
from dlunet.training.build import build_module
from tests.training.short_run import PLAN, fit

pytestmark = pytest.mark.filterwarnings("ignore")

EPOCHS, STEPS = 3, 3


class Noting(Method):
    """Two networks; it notes what it is given in each step, and the gradients that the optimiser saw.

    Args:
        sizes: The norms of the networks' gradients, as multiples of the patches' mean square.
        infinite_after: The step after which a weight is infinite.
    """

    networks = {"a": Trained(), "b": Trained()}  # noqa: RUF012
    predicts = "a"
    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def __init__(self, sizes=(1, 1), infinite_after=None):
        super().__init__()
        self.sizes, self.infinite_after = sizes, infinite_after
        self.given, self.norms = [], []

    def losses(self, step):
        square = step.batch["labelled"]["weak"].square().mean()
        drawn = tuple(torch.rand(3, generator=step.generator).tolist())
        losses = [type(loss.loss).__name__ for loss in (step.loss, step.pseudo_loss)]
        self.given.append(SimpleNamespace(progress=step.progress, drawn=drawn, losses=losses, square=square.item()))
        return {
            role: {"labelled": size * square * sum_of_weights(step.networks[role])}
            for role, size in zip("ab", self.sizes, strict=True)
        }

    def after_step(self, step):
        self.norms.append([norm_of_gradients(step.networks[role]) for role in "ab"])
        if step.progress.step == self.infinite_after:
            next(step.networks["b"].parameters()).data.view(-1)[0] = torch.inf


def sum_of_weights(network):
    """A loss whose gradient of all weights together has a norm of 1."""
    count = sum(weight.numel() for weight in network.parameters())
    return sum(weight.sum() for weight in network.parameters()) / count**0.5


def norm_of_gradients(network):
    return float(torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm())


@pytest.fixture
def train(compose, tmp_path):
    """``train(*words, batch=1, **settings)`` trains a :class:`Noting` method for three epochs and returns it."""

    def train_with(*words, batch=1, **settings):
        config = compose("train", ["scale=tiny", "output=x", *words])
        config.method = {"_target_": f"{__name__}.Noting", **settings}
        module = build_module(config, PLAN, FLARE22)
        fit(module, tmp_path, batch=batch, max_epochs=EPOCHS)
        return module.method

    return train_with


def test_a_method_is_told_how_far_the_run_is(train):
    found = [(step.progress.step, step.progress.epoch, step.progress.fraction) for step in train().given]
    total = EPOCHS * STEPS
    assert found == [(step, step // STEPS, pytest.approx(step / total)) for step in range(total)]


def test_each_step_of_each_seed_has_random_numbers_of_its_own(train):
    first, again, other = ([step.drawn for step in train(f"seed={seed}").given] for seed in (0, 0, 1))
    assert first == again
    assert len({*first, *other}) == 2 * EPOCHS * STEPS


def test_losses_change_at_their_epoch(train):
    steps = train("loss=dice_ce_first", "loss.epoch=1", "pseudo_loss=ga").given
    of_labels, of_pseudo_labels = zip(*(step.losses for step in steps), strict=True)
    assert of_labels == ("DiceCrossEntropyLoss",) * STEPS + ("RobustSegmentationLoss",) * 2 * STEPS
    assert set(of_pseudo_labels) == {"GradientAwareLoss"}


def test_gradients_are_the_mean_over_the_batches_of_a_step(train):
    method = train("sampling.accumulate_grad_batches=2", batch=2, sizes=[1, 3])
    assert len(method.given) == 2 * EPOCHS * STEPS
    first, second = method.given[0].square, method.given[1].square
    assert first != second
    assert method.norms[0] == pytest.approx([(first + second) / 2, 3 * (first + second) / 2], rel=1e-4)


def test_gradients_are_clipped_for_each_network_alone(train):
    method = train("optimizer.gradient_clip=10", sizes=[1, 100])
    assert method.norms[0] == pytest.approx([method.given[0].square, 10], rel=1e-4)


def test_weights_that_are_not_finite_at_the_end_of_an_epoch(train):
    with pytest.raises(
        UserError, match=r"^training diverged in epoch 0: found weights that are not finite; train anew"
    ):
        train(infinite_after=STEPS - 1)
