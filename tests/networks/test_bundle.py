"""Checkpoints load as saved; anything else is refused without running code in it."""

import pickle
from pathlib import Path

import pytest
import torch

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.networks import LightUNet, PlainUNet, build_network, describe, load_bundle
from dlunet.preparation import Plan
from dlunet.preparation.plan import Intensity

PLAN = Plan((2.5, 1.5, 1.25), (16, 32, 48), Intensity(-958.0, 327.5, 82.9, 136.6))
SETTINGS = {"features": [2, 3, 4], "strides": [[1, 2, 2], [2, 2, 2]], "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]]}
KINDS = {"LightUNet": LightUNet, "PlainUNet": PlainUNet}

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def checkpoint(kind="LightUNet", networks=2):
    """A checkpoint as training writes it, and the networks in it."""
    description = {"kind": kind, "num_classes": 14, **SETTINGS}
    trained = torch.nn.ModuleList(build_network(description) for _ in range(networks))
    weights = {f"networks.{name}": value for name, value in trained.state_dict().items()}
    return {"dlunet": describe(description, PLAN, FLARE22), "state_dict": weights, "epoch": 3}, trained


@pytest.mark.parametrize("kind", KINDS)
def test_what_training_saved_comes_back(kind, tmp_path):
    values, trained = checkpoint(kind)
    torch.save(values, tmp_path / "best.ckpt")
    bundle = load_bundle(tmp_path / "best.ckpt")
    assert type(bundle.network) is KINDS[kind]
    assert (bundle.plan, bundle.labels) == (PLAN, FLARE22)
    assert not bundle.network.training
    torch.testing.assert_close(bundle.network.state_dict(), trained[0].state_dict(), rtol=0, atol=0)


def test_an_unknown_kind_of_network_is_never_built():
    with pytest.raises(ValueError, match=r"'Sequential'; expected one of LightUNet, PlainUNet"):
        build_network({"kind": "Sequential"})


class RunsOnLoading:
    """A pickle that creates a file when it is loaded unsafely."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda values, path: path.write_bytes(pickle.dumps(values))])
def test_code_in_a_checkpoint_is_refused_and_does_not_run(save, tmp_path):
    path, mark = tmp_path / "evil.ckpt", tmp_path / "ran"
    save({**checkpoint()[0], "callbacks": RunsOnLoading(mark)}, path)
    with pytest.raises(UserError, match=path.name):
        load_bundle(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file was indeed dangerous


@pytest.mark.parametrize(
    "content", [b"", b"epochs: 1000\n", b".", b"Good morning", b"\x1f\x8b\x08", pickle.dumps([1])], ids=repr
)
def test_a_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "odd.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.ckpt: is not a checkpoint(?!.*weights_only)"):
        load_bundle(path)


@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_checkpoint_cut_short_is_refused(part, tmp_path):
    path = tmp_path / "cut.ckpt"
    torch.save(checkpoint()[0], path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(UserError, match=r"cut\.ckpt: is not a checkpoint, or is damaged"):
        load_bundle(path)


def test_weights_in_16_bits_are_read(tmp_path):
    values, _ = checkpoint()
    values["state_dict"] = {name: weight.bfloat16() for name, weight in values["state_dict"].items()}
    torch.save(values, tmp_path / "half.ckpt")
    assert len(load_bundle(tmp_path / "half.ckpt").digest) == 64


@pytest.mark.parametrize("name", ["gone.ckpt", "."])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(UserError, match="no such checkpoint") as caught:
        load_bundle(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def change(**parts):
    """A change to a checkpoint's description of its network."""
    return lambda values: values["dlunet"]["network"].update(parts)


CHANGES = {
    "no description": lambda values: values.pop("dlunet"),
    "description of another type": lambda values: values.update(dlunet=7),
    "no kind": lambda values: values["dlunet"]["network"].pop("kind"),
    "unknown kind": change(kind="Sequential"),
    "unknown setting": change(dropout=0.1),
    "weights of another size": change(features=[2, 3, 5]),
    "weights of another kind": change(kind="PlainUNet"),
    "no weights": lambda values: values.pop("state_dict"),
    "weights of another type": lambda values: values.update(state_dict=[1, 2]),
    "a weight missing": lambda values: values["state_dict"].pop("networks.0.decoder.1.head.weight"),
    "a weight too many": lambda values: values["state_dict"].update({"networks.0.extra": torch.zeros(1)}),
    "of a newer version": lambda values: values["dlunet"].update(format=2, version="9.0"),
    "another number of classes": lambda values: values["dlunet"]["labels"]["labels"].pop(),
    "a patch that the strides do not divide": lambda values: values["dlunet"]["plan"].update(patch_size=[16, 33, 32]),
    "no plan": lambda values: values["dlunet"].pop("plan"),
    "labels with a gap": lambda values: values["dlunet"]["labels"]["labels"].pop(3),
}


@pytest.mark.parametrize("spoil", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_does_not_fit_its_description_is_refused(spoil, tmp_path):
    values, _ = checkpoint()
    spoil(values)
    torch.save(values, tmp_path / "spoilt.ckpt")
    with pytest.raises(UserError, match=r"spoilt\.ckpt: is not a usable DLUNet checkpoint"):
        load_bundle(tmp_path / "spoilt.ckpt")
