"""The sliding window compared with nnU-Net v2's, written here as plain loops in double precision."""

import math
from itertools import chain, combinations, product

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from dlunet.inference import gaussian_weights, predict_logits, stream_logits, tile_starts

PATCH, STEP = (6, 8, 10), 0.5
ALL_FLIPS = list(chain.from_iterable(combinations((0, 1, 2), count) for count in range(4)))
FLIPS = {"none": [()], "axes": [(), (0,), (1,), (2,)], "full": ALL_FLIPS}


class Context(nn.Module):
    """A network whose output depends on a voxel's position in its tile and on the tile's orientation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.Conv3d(4, 3, 3, padding=1))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        assert x.shape[2:] == PATCH
        return self.dropout(self.layers(x))


def reference(network, volume, flips):
    """nnU-Net v2's sliding window: every tile, every flip, weighted sums."""
    network = network.double().eval()
    missing = [max(0, p - n) for p, n in zip(PATCH, volume.shape, strict=True)]
    padded = np.pad(volume, [(m // 2, m - m // 2) for m in missing])
    starts = []
    for n, p in zip(padded.shape, PATCH, strict=True):
        count = math.ceil((n - p) / (STEP * p)) + 1
        starts.append([int(np.round(k * (n - p) / max(count - 1, 1))) for k in range(count)])
    distances = [(np.arange(p) - p // 2) ** 2 / (2 * (p / 8) ** 2) for p in PATCH]
    weights = np.exp(-sum(np.meshgrid(*distances, indexing="ij")))
    total, sums = 0, np.zeros(padded.shape)
    for corner in product(*starts):
        tile = tuple(slice(c, c + p) for c, p in zip(corner, PATCH, strict=True))
        answers = []
        for axes in FLIPS[flips]:
            with torch.no_grad():
                answer = network(torch.from_numpy(np.flip(padded[tile], axes).copy())[None, None])[0].numpy()
            answers.append(np.flip(answer, [axis + 1 for axis in axes]))
        whole = np.zeros((3, *padded.shape))
        whole[:, *tile] = np.mean(answers, axis=0) * weights
        total = total + whole
        sums[tile] += weights
    inside = tuple(slice(m // 2, m // 2 + n) for m, n in zip(missing, volume.shape, strict=True))
    return (total / sums)[:, *inside]


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("shape", [(9, 13, 27), (6, 8, 10), (3, 5, 9), (6, 21, 4)], ids=str)
def test_against_plain_loops(shape, flips):
    network, volume = Context(), np.random.default_rng(0).normal(size=shape).astype(np.float32)
    logits = predict_logits(network, torch.from_numpy(volume)[None], PATCH, STEP, flips).numpy()
    expected = reference(network, volume.astype(np.float64), flips)
    assert logits.shape == expected.shape == (3, *shape)
    # The only difference: SciPy truncates its Gaussian at 4 sigma, and so does nnU-Net, which uses it.
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("shape", [(31, 9, 11), (7, 8, 10), (6, 21, 4), (3, 5, 9)], ids=str)
def test_a_stream_is_the_whole_in_slabs_no_thicker_than_the_patch(shape, flips):
    network, volume = Context(), torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    slabs = [slab.clone() for slab in stream_logits(network, volume, PATCH, STEP, flips)]
    assert max(slab.shape[1] for slab in slabs) <= PATCH[0]
    assert len(slabs) == len(tile_starts([max(shape[0], PATCH[0])], PATCH[:1], STEP)[0])
    assert torch.equal(torch.cat(slabs, dim=1), predict_logits(network, volume, PATCH, STEP, flips))


@pytest.mark.parametrize("flips", FLIPS)
def test_several_tiles_at_once_give_the_same_logits(flips):
    network, counts = Context().eval(), []
    volume = torch.randn(1, 9, 13, 27, generator=torch.Generator().manual_seed(0))

    def watched(tiles):
        counts.append(len(tiles))
        return network(tiles)

    found = [
        torch.cat([slab.clone() for slab in stream_logits(watched, volume, PATCH, STEP, flips, most)], dim=1)
        for most in (1, 5)
    ]
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    assert max(counts) == 5 and counts.count(1) >= sum(counts) / 2


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("shape", [(9, 13, 17), (3, 21, 10)], ids=str)
def test_a_pointwise_network_is_applied_to_the_volume(shape, flips):
    """A network that sees one voxel at a time is not affected by tiles, weights, padding or flips."""
    torch.manual_seed(1)
    network, volume = nn.Conv3d(1, 4, 1), torch.randn(1, *shape)
    logits = predict_logits(network, volume, PATCH, STEP, flips)
    torch.testing.assert_close(logits, network(volume[None])[0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("flips", ["axes", "full"])
def test_flips_change_nothing_for_a_network_that_is_the_same_mirrored(flips):
    network = nn.Conv3d(1, 2, 3, padding=1)
    with torch.no_grad():
        network.weight.copy_(sum(network.weight.flip([axis + 2 for axis in axes]) for axes in ALL_FLIPS) / 8)
    volume = torch.randn(1, 7, 12, 13, generator=torch.Generator().manual_seed(0))
    without, averaged = (predict_logits(network, volume, PATCH, STEP, mode) for mode in ("none", flips))
    torch.testing.assert_close(averaged, without, atol=1e-5, rtol=0)


def test_full_flips_answer_mirrored_questions_with_mirrored_answers():
    """Averaged over all eight flips, any network treats a tile and its mirror image alike."""
    network, volume = Context(), torch.randn(1, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    logits = predict_logits(network, volume, PATCH, STEP, "full")
    for axes in ([1], [2, 3], [1, 2, 3]):
        mirrored = predict_logits(network, volume.flip(axes), PATCH, STEP, "full").flip(axes)
        torch.testing.assert_close(mirrored, logits, atol=1e-4, rtol=0)
    assert not torch.allclose(logits, predict_logits(network, volume, PATCH, STEP, "none"), atol=0.01)


@pytest.mark.parametrize(
    ("size", "patch", "step", "starts"),
    [
        (110, 64, 0.5, [0, 23, 46]),  # nnU-Net's own example
        (64, 64, 0.5, [0]),
        (65, 64, 0.5, [0, 1]),
        (96, 64, 0.5, [0, 32]),
        (97, 64, 0.5, [0, 16, 33]),  # 16.5 rounds to even
        (128, 64, 1.0, [0, 64]),
    ],
)
def test_tile_starts(size, patch, step, starts):
    assert tile_starts([size] * 2, [patch] * 2, step) == [starts] * 2


@pytest.mark.parametrize("patch", [(56, 160, 160), (5, 8, 16)], ids=str)
def test_gaussian_weights_are_scipys(patch):
    lines = []
    for size in patch:
        impulse = np.eye(size)[size // 2]
        line = ndimage.gaussian_filter1d(impulse, size / 8, mode="constant")
        lines.append(line / line.max())
    expected = np.einsum("i,j,k", *lines)
    weights = gaussian_weights(patch)
    np.testing.assert_allclose(weights, np.maximum(expected, expected[expected > 0].min()), rtol=1e-4)
    assert weights.max() == 1 and weights.min() > 0 and weights.dtype == np.float32


def test_the_network_is_left_in_the_mode_it_was_in():
    network, volume = Context(), torch.zeros(1, *PATCH)
    for training in (True, False):
        network.train(training)
        first, second = (predict_logits(network, volume, PATCH) for _ in range(2))
        assert torch.equal(first, second)  # no dropout
        assert network.training is network.dropout.training is training


def test_an_unknown_kind_of_flips():
    with pytest.raises(ValueError, match="flips must be one of none, axes, full, not 'all'"):
        predict_logits(Context(), torch.zeros(1, *PATCH), PATCH, flips="all")
