"""Cross pseudo supervision against equations 1 to 5, written out here."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlunet.methods import CrossPseudo, Progress, Step, draw_masks

CLASSES, BATCH, PATCH = 3, 2, (8, 12, 16)
SEED, WEIGHT = 5, 0.8
OTHER = {"a": "b", "b": "a"}


class TwoLevels(nn.Module):
    """A network with two outputs that depend on neighbouring voxels, so that mixing before and after it differs."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Conv3d(1, CLASSES, 3, padding=1)
        self.coarse = nn.Conv3d(1, CLASSES, 3, stride=2, padding=1)
        self.calls = Counter()

    def forward(self, x):
        self.calls[len(x), "with gradient" if torch.is_grad_enabled() else "without"] += 1
        return [self.fine(x), self.coarse(x)]


def nearest(volume, level):
    """The volume at a level: every voxel, or every second one."""
    return volume if level == 0 else volume[:, ::2, ::2, ::2]


def level_loss(outputs, targets):
    """Cross entropy with a weight of 3 for the coarse level; accepts one target or one per level."""
    if isinstance(targets, torch.Tensor):
        targets = [nearest(targets, level) for level in range(2)]
    fine, coarse = (F.cross_entropy(z, y) for z, y in zip(outputs, targets, strict=True))
    return fine + 3 * coarse


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return {"a": TwoLevels().double(), "b": TwoLevels().double()}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    names = ("image", "unlabelled_i", "unlabelled_j")
    patches = {name: torch.randn(BATCH, 1, *PATCH, generator=generator, dtype=torch.float64) for name in names}
    return {**patches, "label": torch.randint(0, CLASSES, (BATCH, *PATCH), generator=generator)}


def run(networks, batch, loss=level_loss, **settings):
    """The terms of both networks."""
    streams = {"labelled": {"weak": batch["image"], "label": batch["label"]}}
    streams |= {name: {"weak": patches} for name, patches in batch.items() if name.startswith("unlabelled")}
    progress = Progress(step=0, epoch=0, fraction=0.5)
    step = Step(networks, streams, loss, loss, progress, torch.Generator().manual_seed(SEED))
    terms = CrossPseudo(**settings).losses(step)
    return {f"{name}_{role}": value for role, named in terms.items() for name, value in named.items()}


@pytest.fixture
def expected(networks, batch):
    """The four unweighted losses of equations 1 to 4."""
    mask = draw_masks(BATCH, PATCH, 3, torch.Generator().manual_seed(SEED))
    h = mask.to(torch.float64)[:, None]
    x_i, x_j = batch["unlabelled_i"], batch["unlabelled_j"]
    x_ij = h * x_j + (1 - h) * x_i
    pseudo = {}
    for name, network in networks.items():
        y_i, y_j = ([z.argmax(1) for z in network(x)] for x in (x_i, x_j))
        pseudo[name] = []
        for level in range(2):
            cut = nearest(mask, level).long()
            pseudo[name].append(cut * y_j[level] + (1 - cut) * y_i[level])
    losses = {}
    for name, network in networks.items():
        losses[f"labelled_{name}"] = level_loss(network(batch["image"]), batch["label"])
        losses[f"unlabelled_{name}"] = level_loss(network(x_ij), pseudo[OTHER[name]])
        network.calls.clear()
    return losses


def gradients(network):
    return [parameter.grad for parameter in network.parameters()]


@pytest.mark.parametrize("settings", [{}, {"unlabelled_weight": 0.3}])
def test_terms_and_total_are_those_of_equation_5(settings, networks, batch, expected):
    terms = run(networks, batch, **settings)
    weight = settings.get("unlabelled_weight", WEIGHT)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value * (weight if name.startswith("un") else 1))
    total = expected["labelled_a"] + expected["labelled_b"]
    total = total + weight * (expected["unlabelled_a"] + expected["unlabelled_b"])
    torch.testing.assert_close(sum(terms.values()), total)


def test_each_network_learns_from_its_own_two_terms_alone(networks, batch, expected):
    sum(run(networks, batch).values()).backward()
    for name, network in networks.items():
        own = expected[f"labelled_{name}"] + WEIGHT * expected[f"unlabelled_{name}"]
        by_hand = torch.autograd.grad(own, list(network.parameters()))
        torch.testing.assert_close(gradients(network), list(by_hand))


def test_pseudo_labels_come_from_one_pass_over_both_patches_without_gradient(networks, batch):
    run(networks, batch)
    for network in networks.values():
        # the labelled and the mixed patches together, with gradient; u_i and u_j together, without
        assert network.calls == {(2 * BATCH, "with gradient"): 1, (2 * BATCH, "without"): 1}


def test_an_example_of_a_mix_has_the_finest_pseudo_labels_of_both_teachers(networks, batch):
    x_i, x_j = batch["unlabelled_i"], batch["unlabelled_j"]
    mix = CrossPseudo().mix(networks, x_i, x_j, torch.Generator().manual_seed(SEED))
    mask = draw_masks(BATCH, PATCH, 3, torch.Generator().manual_seed(SEED))
    assert torch.equal(mix.patches, x_i * ~mask[:, None] + x_j * mask[:, None])
    for name, network in networks.items():
        y_i, y_j = (network(x)[0].argmax(1) for x in (x_i, x_j))
        assert torch.equal(mix.pseudo_labels[name].long(), y_i * ~mask + y_j * mask)
    averaged = CrossPseudo(decay=0.9)
    teachers = {f"average_{name}": network for name, network in networks.items()}
    assert averaged.mix(teachers, x_i, x_j, torch.Generator()).pseudo_labels.keys() == teachers.keys()


class Brighter(nn.Module):
    """Predicts class 1 where the patch is brighter than 0 (or darker), and records the mixed half of its input."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        self.shown = x[len(x) // 2 :]
        return torch.cat([torch.zeros_like(x), self.sign * x], dim=1)


@pytest.fixture
def one_thread():
    """Networks run one after the other, so that the last input of a network is the one of its loss."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_patch_and_both_pseudo_labels_are_cut_with_one_mask(one_thread):
    """With u_i dark and u_j bright everywhere, input and target of each network show the mask itself."""
    networks = {"a": Brighter(1), "b": Brighter(-1)}
    bright = torch.ones(4, 1, *PATCH)
    batch = {"image": bright, "label": bright, "unlabelled_i": -bright, "unlabelled_j": bright}
    told = {}

    def note_targets(outputs, targets):
        told.setdefault("a" if outputs[0, 1, 0, 0, 0] == networks["a"].shown[0, 0, 0, 0, 0] else "b", []).append(
            targets
        )
        return outputs.mean()

    run(networks, batch, loss=note_targets)
    mask = networks["a"].shown[:, 0] == 1
    assert 0 < mask.float().mean() < 1
    assert torch.equal(networks["b"].shown[:, 0] == 1, mask)
    (told_to_a,), (told_to_b,) = (next(t for t in told[name] if isinstance(t, list)) for name in "ab")
    assert torch.equal(told_to_a, (~mask).long())  # b predicts class 1 where it is dark
    assert torch.equal(told_to_b, mask.long())
