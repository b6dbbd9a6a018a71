"""Deep supervision and loss schedules."""

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from dlunet.losses import DeepSupervisionLoss, LossSchedule, downsample, level_weights, supervision

SIZES = [(8, 16, 16), (8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1)]


class MeanDistance(nn.Module):
    """A loss that depends on both inputs: the mean of logits × (target + 1)."""

    def forward(self, logits, target):
        assert logits.shape[2:] == target.shape[1:]
        return (logits[:, 0] * (target + 1)).mean()


@pytest.fixture
def levels():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 1, *size, generator=generator) for size in SIZES]


@pytest.fixture
def label():
    return torch.randint(0, 14, (2, *SIZES[0]), generator=torch.Generator().manual_seed(1))


def strided(label):
    """Nearest neighbours at every level: for integer factors, the first voxel of each block."""
    return [label[:, :: 8 // z, :: 16 // y, :: 16 // x] for z, y, x in SIZES]


def weighted(levels, targets):
    values = [(z[:, 0] * (y + 1)).mean() for z, y in zip(levels, targets, strict=True)]
    return (values[0] + values[1] / 2 + values[2] / 4 + values[3] / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)


@pytest.mark.parametrize(
    ("count", "raw"), [(1, [1]), (2, [1, 0]), (3, [1, 1 / 2, 0]), (5, [1, 1 / 2, 1 / 4, 1 / 8, 0])]
)
def test_weights_halve_leave_the_coarsest_out_and_sum_to_one(count, raw):
    assert level_weights(count) == pytest.approx([weight / sum(raw) for weight in raw])


def test_one_target_is_brought_to_every_level(levels, label):
    loss = DeepSupervisionLoss(MeanDistance())
    torch.testing.assert_close(loss(levels, label), weighted(levels, strided(label)))


class WeightedDistance(nn.Module):
    """Like :class:`MeanDistance`, with voxel weights and an ignored label."""

    def forward(self, logits, target, weight=None, ignore=None):
        kept = torch.ones_like(target, dtype=torch.bool) if ignore is None else target != ignore
        return ((logits[:, 0] * (target + 1) * (1 if weight is None else weight))[kept]).sum() / kept.sum()


def test_weights_and_the_ignored_label_reach_every_level(levels, label):
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(2))
    loss, targets = DeepSupervisionLoss(WeightedDistance()), strided(label)
    for given in ({"weight": weight}, {"ignore": 3}, {"weight": weight, "ignore": 3}):
        terms = []
        for index, (z, y) in enumerate(zip(levels[:4], targets[:4], strict=True)):
            w = strided(weight)[index] if "weight" in given else torch.ones(y.shape)
            counts = [float(v != given.get("ignore")) for v in y.flatten().tolist()]
            values = (z[:, 0] * (y + 1) * w).flatten().tolist()
            terms.append(sum(c * v for c, v in zip(counts, values, strict=True)) / sum(counts))
        expected = (terms[0] + terms[1] / 2 + terms[2] / 4 + terms[3] / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
        assert loss(levels, label, **given).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(loss(levels, label, weight=strided(weight)), loss(levels, label, weight=weight))


def test_targets_by_level_are_taken_as_they_are(levels, label):
    loss, own = DeepSupervisionLoss(MeanDistance()), [13 - target for target in strided(label)]
    torch.testing.assert_close(loss(levels, own), weighted(levels, own))
    with pytest.raises(ValueError, match="zip"):
        loss(levels, own[:4])


def test_the_coarsest_level_takes_no_part(levels, label):
    levels = [*levels[:-1], torch.full_like(levels[-1], torch.nan).requires_grad_()]
    assert DeepSupervisionLoss(MeanDistance())(levels, label).isfinite()


def test_nothing_is_downsampled_to_the_coarsest_level(levels, label, monkeypatch):
    sizes = []
    monkeypatch.setattr(supervision, "downsample", lambda y, size: sizes.append(tuple(size)) or downsample(y, size))
    DeepSupervisionLoss(WeightedDistance())(levels, label, weight=torch.ones(label.shape))
    assert sizes == 2 * SIZES[:4]


def test_a_single_output_is_the_loss_itself(levels, label):
    expected = MeanDistance()(levels[0], label)
    for logits in (levels[0], levels[:1]):
        torch.testing.assert_close(DeepSupervisionLoss(MeanDistance())(logits, label), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_downsampling_takes_existing_labels_and_keeps_their_type(dtype):
    label = torch.randint(0, 256, (2, 5, 6, 7), generator=torch.Generator().manual_seed(2)).to(dtype)
    found = downsample(label, (3, 6, 2))
    assert found.dtype == dtype
    assert torch.equal(found, label[:, [0, 1, 3]][..., [0, 3]])  # floor(i · old / new)


@hypothesis.given(
    size=st.tuples(*[st.integers(1, 9)] * 3), times=st.tuples(*[st.sampled_from([1, 1.5, 2, 2.3, 3, 5])] * 3)
)
def test_downsampling_is_interpolation_to_the_nearest(size, times):
    shape = [int(n * t) for n, t in zip(size, times, strict=True)]
    label = torch.randint(0, 256, (2, *shape), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    expected = F.interpolate(label[:, None].float(), size, mode="nearest")[:, 0]
    assert torch.equal(downsample(label, size).float(), expected)


def test_a_schedule_changes_losses_at_the_stated_epoch():
    first, then = nn.L1Loss(), nn.MSELoss()
    schedule = LossSchedule(first, then, epoch=200)
    in_force = {epoch: schedule.at(epoch) for epoch in (0, 1, 199, 200, 201, 999)}
    assert in_force == {0: first, 1: first, 199: first, 200: then, 201: then, 999: then}
