"""The compiled network gives PyTorch's logits for every light U-Net; where it cannot run, other engines do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dlunet.errors import UserError
from dlunet.inference import make_engine
from dlunet.inference.engines import EngineUnavailable
from dlunet.inference.engines.native import NativeEngine, can_run
from dlunet.labels import FLARE22
from dlunet.networks import Bundle, LightUNet, PlainUNet
from dlunet.preparation import Intensity, Plan
from tests.native.variants import VARIANTS, needs_compiler

THREE, FLAT = (3, 3, 3), (1, 3, 3)
NETWORKS = {
    "as for two cores": (
        {
            "features": (8, 16, 32, 64, 80),
            "strides": ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
            "kernel_sizes": (FLAT, THREE, THREE, THREE, THREE),
        },
        (16, 48, 64),
    ),
    "two channels, many classes, sizes that nothing divides": (
        {
            "in_channels": 2,
            "num_classes": 35,
            "features": (3, 6, 41),
            "strides": ((1, 2, 1), (2, 2, 2)),
            "kernel_sizes": ((1, 1, 1), THREE, THREE),
            "deep_supervision": False,
        },
        (6, 20, 46),
    ),
    "odd strides and kernels": (
        {"features": (8, 40), "strides": ((2, 1, 2),), "kernel_sizes": ((5, 3, 3), (1, 3, 1))},
        (4, 3, 22),
    ),
    "more slices and rows than a thread takes at a time": (
        {"features": (4, 8), "strides": ((2, 2, 2),), "kernel_sizes": (THREE, THREE)},
        (60, 44, 22),
    ),
    "a single voxel at the coarsest": (
        {"features": (4, 8), "strides": ((1, 2, 2),), "kernel_sizes": (THREE, THREE)},
        (1, 2, 2),
    ),
}


def network(**settings):
    torch.manual_seed(0)
    made = LightUNet(**settings).eval()
    for module in made.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.uniform_(module.weight, 0.5, 2)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)
    return made


def difference(found, expected):
    """Largest difference as a fraction of the range."""
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


@needs_compiler
@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("settings", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_it_gives_pytorchs_logits(settings, shape, flags):
    made = network(**settings)
    engine = NativeEngine(made, shape, flags)
    for _ in range(2):  # what one tile leaves in the buffers must not affect the next
        tile = 3 * torch.randn(1, made.in_channels, *shape) + 1
        with torch.inference_mode():
            expected = made.double()(tile.double())
        made.float()
        assert difference(engine(tile), expected) < 1e-5


@needs_compiler
def test_the_papers_network_and_any_number_of_threads():
    made, tile = network(), torch.randn(1, 1, 16, 64, 96)
    engine = NativeEngine(made, tile.shape[2:])
    with torch.inference_mode():
        expected = made(tile)
    threads = torch.get_num_threads()
    try:
        logits = engine(tile).clone()
        assert difference(logits, expected) < 1e-5
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(engine(tile), logits)
    finally:
        torch.set_num_threads(threads)


def test_what_it_cannot_run():
    assert can_run(LightUNet()) and not can_run(PlainUNet()) and not can_run(nn.Identity()) and not can_run(None)
    plan = Plan((8.0, 8.0, 8.0), (16, 48, 64), Intensity(0, 1, 0, 1))
    with pytest.raises(UserError, match="engine=native: it only runs light U-Nets"):
        make_engine(Bundle(PlainUNet(), plan, FLARE22), "native")
    for settings in (
        {"features": (4, 8), "strides": ((1, 2, 4),), "kernel_sizes": (THREE, THREE)},
        {"features": (4, 8), "strides": ((1, 2, 2),), "kernel_sizes": ((3, 3, 5), THREE)},
        {"features": (1, 8), "strides": ((1, 2, 4),), "kernel_sizes": (THREE, THREE)},
    ):
        assert not can_run(LightUNet(**settings))
        with pytest.raises(EngineUnavailable, match="light U-Nets with kernels"):
            NativeEngine(LightUNet(**settings), (8, 16, 16))


@needs_compiler
def test_a_patch_that_the_strides_do_not_divide():
    for shape in ((16, 47, 64), (1, 16, 16), (0, 16, 16)):
        with pytest.raises(ValueError, match="not a multiple of the total stride"):
            NativeEngine(network(**NETWORKS["as for two cores"][0]), shape)


@needs_compiler
@pytest.mark.parametrize("level", [-7.0, 0.0, 100.0])
def test_air_and_other_almost_constant_tiles(level):
    """Variances far below the squared mean, where float32 sums would lose their precision."""
    settings, shape = NETWORKS["as for two cores"]
    made, tile = network(**settings), level + 0.05 * torch.randn(1, 1, *shape)
    with torch.inference_mode():
        expected = made.double()(tile.double())
    made.float()
    assert difference(NativeEngine(made, shape)(tile), expected) < 1e-3


@pytest.fixture
def bundle():
    settings, shape = NETWORKS["as for two cores"]
    return Bundle(network(**settings), Plan((8.0, 8.0, 8.0), shape, Intensity(0, 1, 0, 1)), FLARE22)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [("", "no C++ compiler is installed"), ("/bin/false", "false fails"), (__file__, "no C++ compiler is installed")],
)
def test_without_a_compiler_that_works(compiler, message, bundle, empty_cache, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    works = Path(compiler).name == "false"
    with pytest.raises(UserError, match="engine=native: ") as caught:
        make_engine(bundle, "native")
    assert message in str(caught.value) and "engine=torch runs every checkpoint" in str(caught.value)
    assert not make_engine(bundle).name.startswith("native")
    # A missing compiler is not reported, a failing one is.
    assert ("engine=native cannot be used" in caplog.text) is works
