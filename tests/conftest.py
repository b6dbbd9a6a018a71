"""Shared fixtures: small CTs on disk, written without the code under test, and damaged files."""

import contextlib
import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import hydra
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import settings
from omegaconf import OmegaConf

from dlunet.configs import CONFIGS
from dlunet.native import library

pytest_plugins = ["tests.commands"]

# OpenVINO imports absl, whose log handler closes the stderr it was created with when Hydra reconfigures logging. Import
# it with the real stderr, so that it does not close pytest's.
with contextlib.redirect_stderr(sys.__stderr__), contextlib.suppress(ImportError):
    import openvino  # noqa: F401

# For `pytest --hypothesis-profile=full`.
settings.register_profile("full", max_examples=2000)

#: By orientation letter: the axis of a canonical array (z, y, x), and whether the direction is reversed.
LETTERS = {"L": (2, False), "R": (2, True), "P": (1, False), "A": (1, True), "S": (0, False), "I": (0, True)}


def stored_image(array, spacing=(1.0, 1.0, 1.0), orientation="LPS", origin=(0.0, 0.0, 0.0), rotation=None):
    """A canonical array (z, y, x) as an image whose axes x, y, z point in the directions of ``orientation``.

    Args:
        array: (z, y, x) with axes towards superior, posterior and left; (z, y, x, c) for several values per voxel.
        spacing: (z, y, x) in mm.
        orientation: Three letters, such as ``RAI``.
        origin: Position of the voxel array[0, 0, 0] before ``rotation``, x, y, z in mm (LPS).
        rotation: A 3×3 matrix that rotates the grid about 0.
    """
    axes = [LETTERS[letter][0] for letter in orientation]
    voxels = np.transpose(array, (*reversed(axes), *range(3, array.ndim)))
    direction, first = np.zeros((3, 3)), np.array(origin, float)
    for k, letter in enumerate(orientation):
        axis, reversed_ = LETTERS[letter]
        direction[2 - axis, k] = -1 if reversed_ else 1
        if reversed_:
            voxels = np.flip(voxels, 2 - k)
            first[2 - axis] += (array.shape[axis] - 1) * spacing[axis]
    rotation = np.eye(3) if rotation is None else rotation
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels), isVector=array.ndim == 4)
    image.SetSpacing([float(spacing[axis]) for axis in axes])
    image.SetDirection((rotation @ direction).ravel().tolist())
    image.SetOrigin((rotation @ first).tolist())
    return image


@pytest.fixture(scope="session")
def write_volume():
    """``write_volume(path, array, **grid)`` writes a volume (grid as for ``stored_image``) and returns its path."""

    def write(path: Path, array: np.ndarray, **grid) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(stored_image(array, **grid), str(path))
        return path

    return write


@dataclass(frozen=True)
class TinyAbdomen:
    """A CT of about 19×32×32 cm with 13 spherical organs, each with its own intensity."""

    seed: int
    shape: tuple[int, int, int] = (24, 40, 40)
    spacing: tuple[float, float, float] = (8.0, 8.0, 8.0)

    @property
    def labels(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        labels = np.zeros(self.shape, np.uint8)
        grid = np.stack(np.indices(self.shape), axis=-1)
        places = [(z, y, x) for z in (7, 16) for y in (10, 20, 29) for x in (9, 20, 30)][:13]
        for organ, place in enumerate(places, start=1):
            centre = place + rng.integers(-1, 2, 3)
            labels[((grid - centre) ** 2).sum(-1) <= rng.uniform(2.6, 4.0) ** 2] = organ
        return labels

    @property
    def hu(self) -> np.ndarray:
        rng = np.random.default_rng(self.seed)
        _, y, x = np.indices(self.shape)
        inside = ((y - 19.5) / 18) ** 2 + ((x - 19.5) / 19) ** 2 < 1
        hu = np.where(inside, -80.0, -1000.0) + (self.labels > 0) * 100 + self.labels * 15
        return (hu + rng.normal(0, 6, self.shape)).round().astype(np.int16)


@pytest.fixture(scope="session")
def tiny_abdomen():
    """``tiny_abdomen(seed)`` is a :class:`TinyAbdomen`."""
    return TinyAbdomen


@pytest.fixture(scope="session")
def tiny_flare22(write_volume):
    """``tiny_flare22(root, labelled=3, unlabelled=4, validation=1, test=2)`` writes FLARE22's folders."""

    def write(root: Path, labelled: int = 3, unlabelled: int = 4, validation: int = 1, test: int = 2) -> Path:
        training = root / "Training"
        parts = (
            (training / "FLARE22_LabeledCase50", "FLARE22_Tr_{:04}", labelled, True),
            (training / "FLARE22_UnlabeledCase1-1000", "Case_{:05}", unlabelled, False),
            (root / "Tuning", "FLARETs_{:04}", validation, True),
            (root / "Testing", "FLARETs_{:04}", test, True),
        )
        seed = 0
        for folder, name, count, has_labels in parts:
            for number in range(1, count + 1):
                abdomen, stem = TinyAbdomen(seed), name.format(number)
                images = folder / "images" if has_labels else folder
                grid = {"spacing": abdomen.spacing, "orientation": "RAS"}
                write_volume(images / f"{stem}_0000.nii.gz", abdomen.hu, **grid)
                if has_labels:
                    write_volume(folder / "labels" / f"{stem}.nii.gz", abdomen.labels, **grid)
                seed += 1
        return root

    return write


@pytest.fixture(scope="session")
def tiny_root(tiny_flare22, tmp_path_factory):
    """A dataset in FLARE22's layout shared by all tests that only read it."""
    return tiny_flare22(tmp_path_factory.mktemp("flare22"))


@pytest.fixture(scope="session", autouse=True)
def configs_are_read_once():
    """Hydra reads the files of conf/ anew for each config, a third of the time of composing it; here it does once."""
    read, known = OmegaConf.load, {}

    def load(file):
        path = Path(getattr(file, "name", ""))
        if CONFIGS not in path.parents:
            return read(file)
        if path not in known:
            known[path] = read(file)
        return copy.deepcopy(known[path])

    with patch.object(OmegaConf, "load", load):
        yield


@pytest.fixture
def compose():
    """``compose(verb, overrides)`` is the config of a command."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        yield hydra.compose


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """The folder for the library of compiled code, which is neither there nor loaded."""

    def forget():
        library.load_library.cache_clear()
        library.why_unavailable.cache_clear()

    forget()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "dlunet"
    forget()


def cut(content, rng):
    return content[: rng.integers(0, len(content))]


def doubled(content, rng):
    start, length = rng.integers(0, len(content)), rng.integers(1, 200)
    return content[: start + length] + content[start:]


def flipped(content, rng):
    changed = bytearray(content)
    for at in rng.integers(0, min(len(content), int(rng.choice([400, 10**9]))), int(rng.integers(1, 4))):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def zeroed(content, rng):
    start, length = rng.integers(0, len(content)), rng.integers(1, 2000)
    return (content[:start] + bytes(length) + content[start + length :])[: len(content)]


@pytest.fixture(params=[cut, doubled, flipped, zeroed], ids=lambda damage: damage.__name__)
def damage(request):
    """``damage(content, rng)`` is a damaged version of a file's bytes."""
    return request.param


@pytest.fixture
def rounds(request):
    """Number of damaged files per kind: few, or many with ``--hypothesis-profile=full``."""
    return 50 if request.config.getoption("--hypothesis-profile") == "full" else 5
