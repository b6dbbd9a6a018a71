"""The command line from the user's point of view."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet import cli
from dlunet.inference import Predictor
from dlunet.inference.postprocessing import fill_holes, keep_largest_components
from dlunet.labels import FLARE22
from dlunet.networks import load_bundle
from dlunet.volumes import read_ct

ROOT = Path(__file__).parents[1]
REAL_CT = ROOT.parent / "shared" / "data" / "ct_abdomen_3mm.nii.gz"
TINY = ("scale=tiny", "data=flare22", "data.root=flare22", "logger=csv", "data.workers=1")
BAD = (*TINY, "output=bad")


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory, dlunet_process):
    """A working folder with a dataset and a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_flare22(folder / "flare22")
    dlunet_process("train.py", "experiment=sup_light", *TINY, "output=run", cwd=folder)
    return folder


@pytest.fixture
def dlunet(dlunet, place):
    """``dlunet(verb, …, fails=False)`` runs a command in ``place`` and returns what it printed."""
    return lambda *words, fails=False: dlunet(*words, cwd=place, fails=fails).all


@pytest.fixture
def predict(dlunet):
    """``predict(input, output, …)`` segments with the trained run."""

    def call(source: Path | str, output: str, *more: str, fails: bool = False) -> str:
        words = ("checkpoint=run/checkpoints/best.ckpt", f"input={source}", f"output={output}", *more)
        return dlunet("predict", *words, fails=fails)

    return call


def test_from_labels_to_report(place, dlunet, dlunet_process):
    words = ("checkpoint=run/checkpoints/best.ckpt", "input=flare22/Testing/images", "output=run/predictions")
    dlunet_process("predict.py", *words, cwd=place)
    scores = ("predictions=run/predictions", "references=flare22/Testing/labels", "output=run/scores")
    dlunet_process("evaluate", *scores, cwd=place)
    assert "report: " in dlunet("report", "runs=run", "output=page")
    assert (place / "page" / "index.html").is_file()
    assert not (place / "cli.log").exists()


@pytest.mark.skipif(not REAL_CT.exists(), reason="the real CT in ../shared/data is absent")
def test_prediction_of_a_real_ct_lies_on_its_grid(place, predict):
    predict(REAL_CT, "real")
    ct, labels = sitk.ReadImage(str(REAL_CT)), sitk.ReadImage(str(place / "real" / REAL_CT.name))
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert labels.GetSize() == ct.GetSize()
    for ours, theirs in zip(
        (*labels.GetSpacing(), *labels.GetOrigin(), *labels.GetDirection()),
        (*ct.GetSpacing(), *ct.GetOrigin(), *ct.GetDirection()),
        strict=True,
    ):
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_labels_of_another_network_or_setting_are_not_kept(predict):
    predict("flare22/Testing/images", "other")
    message = predict("flare22/Testing/images", "other", "flips=axes", fails=True)
    assert "flips" in message and "other" in message


def test_the_settings_of_a_prediction_are_those_of_the_command(place, predict):
    """Beside the labels of default settings, which differ."""
    ct, words = place / "flare22" / "Testing" / "images" / "FLARETs_0001_0000.nii.gz", ("tile_step=0.9", "flips=axes")
    for output, more in (("default", ()), ("plain", words), ("largest", (*words, "postprocess=[largest,holes]"))):
        predict(ct, output, *more)
    default, plain, largest = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(place / output / "FLARETs_0001.nii.gz")))
        for output in ("default", "plain", "largest")
    )
    predictor = Predictor(load_bundle(place / "run" / "checkpoints" / "best.ckpt"), 0.9, "axes")
    expected = predictor.segment(read_ct(ct))[:, ::-1, ::-1]  # the file is RAS
    assert (expected != default).any()
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(largest, fill_holes(keep_largest_components(expected)))
    assert (largest != plain).any()


def test_bad_cases_are_named_and_the_others_done(place, predict):
    inputs = place / "inputs"
    shutil.copytree(place / "flare22" / "Testing" / "images", inputs)
    (inputs / "broken_0000.nii.gz").write_bytes(b"no NIfTI")
    message = predict("inputs", "mixed", fails=True)
    assert "broken_0000.nii.gz" in message
    assert sorted(path.name for path in (place / "mixed").glob("*.nii.gz")) == [
        "FLARETs_0001.nii.gz",
        "FLARETs_0002.nii.gz",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("predict",), ("missing: checkpoint, input, output",)),
        (
            ("predict", "checkpoint=run/config.yaml", "input=flare22", "output=x"),
            ("run/config.yaml", "not a checkpoint"),
        ),
        (("predict", "checkpoint=gone.ckpt", "input=flare22", "output=x"), ("gone.ckpt", "no such checkpoint")),
        (("predict", "checkpoint=run/checkpoints/best.ckpt", "input=gone", "output=x"), ("gone", "no such file")),
        (("predict", "checkpoint=run/checkpoints/best.ckpt", "input=run", "output=x"), ("run: contains no CT",)),
        (("predict", "checkpoint=x", "input=x", "output=x", "flips=some"), ("flips", "some", "none, axes, full")),
        (("predict", "checkpoint=x", "input=x", "output=x", "tile_step=0"), ("tile_step", "greater than 0")),
        (
            ("predict", "checkpoint=x", "input=flare22/Testing/images", "output=x", "postprocess=nice"),
            ("largest, holes",),
        ),
        (("predict", "checkpoint=x", "input=x", "output=x", "postprocess=null"), ("postprocess: found None",)),
        (("predict", "checkpoint=x", "input=", "output=x"), ("missing: input; add input=",)),
        (
            ("predict", "checkpoint=x", "input=flare22/Testing/images", "output=x", "engine=keras"),
            ("engine", "openvino"),
        ),
        (("export", "checkpoint=run/checkpoints/best.ckpt", "format=keras", "output=x"), ("format", "keras", "onnx")),
        (
            ("predict", "checkpoint=run", "input=flare22/Testing/images", "output=x"),
            ("run: is not an exported network",),
        ),
        (("predict", "chekpoint=x"), ("dlunet: Could not override 'chekpoint'", "`dlunet predict --help`")),
        (("doctor", "data=folder"), ("data/folder", "folders")),
        (("doctor", "data=folders", "x"), ("Error parsing override 'x'",)),
        (("doctor", "data=folders", "data.names=[a,b"), ("dlunet: ", "[a,b")),
        (("evaluate", "predictions=gone", "references=gone", "output=x"), ("gone",)),
        (("report", "runs=flare22", "output=x"), ("flare22",)),
        (("prepare", "data=flare22", "data.root=gone"), ("gone", "no such folder")),
        (("prepare", "data=flare22"), ("missing: data.root",)),
        (("train", *BAD, "data.root=run"), ("run", "no labelled case", "FLARE22")),
        (("train", *BAD, "experiment=nonsense"), ("experiment/nonsense", "ssl_light")),
        (("train", *BAD, "loss=null", "resume=null"), ("dlunet: loss=null: expected the name of a choice",)),
        (("train", *BAD, "scale=3"), ("dlunet: scale=3: expected the name of a choice",)),
        (
            ("train", *BAD, "plan.patch_size=[15,32,32]"),
            ("plan.patch_size", "[15, 32, 32]", "multiples"),
        ),
        (("train", *BAD, "network.features=[4,8]"), ("network", "2 features", "strides")),
        (("train", *BAD, "+trainer.num_nodes=2"), ("trainer.num_nodes: found 2", "torchrun or srun")),
        (("train", *BAD, "+trainer.strategy=fsdp"), ("trainer.strategy: found fsdp", "ddp_spawn, ddp_fork")),
        (("train", *TINY, "output=run"), ("run", "already contains a run", "resume=auto")),
        (("train", "-m", "seed=0,1", "--cfg", "job"), ("dlunet: --cfg: found with -m", "leave out -m")),
        (("nonsense",), ("unknown command 'nonsense'", "usage")),
    ],
)
def test_bad_input_ends_in_one_message(dlunet, words, expected):
    message = dlunet(*words, fails=True)
    assert "HYDRA" not in message and "hydra.cc" not in message
    for part in expected:
        assert part in message


ODD = "Größe (1) a=b[1];it's, x"


def test_paths_of_whatever_characters(place, dlunet):
    """Every command, and a run whose default folder is named after the dataset's folder."""
    odd = place / ODD
    shutil.copytree(place / "flare22", odd / "flare22")
    before = set(os.listdir(place))
    data = (*TINY[:2], f"data.root={ODD}/flare22", f"data.prepared={ODD}/prepared", "data.workers=1")
    short = ("logger=csv", "trainer.max_epochs=1", "sampling.steps_per_epoch=1")
    dlunet("doctor", *data)
    assert "prepared: 3 labelled" in dlunet("prepare", *data)
    dlunet("self_train", *data, *short, f"output={ODD}/chain")
    checkpoint = f"checkpoint={ODD}/chain/student/checkpoints/best.ckpt"
    dlunet("predict", checkpoint, f"input={ODD}/flare22/Testing/images", f"output={ODD}/labels")
    images = sorted((odd / "flare22" / "Testing" / "images").iterdir())
    (odd / "second.nii.gz").symlink_to(images[1])
    dlunet("predict", checkpoint, f'input=["{images[0]}", "{odd / "second.nii.gz"}"]', f"output='{odd / 'two'}'")
    assert sorted(path.name for path in (odd / "two").glob("*.nii.gz")) == ["FLARETs_0001.nii.gz", "second.nii.gz"]
    references = f"references={ODD}/flare22/Testing/labels"
    dlunet("evaluate", f"predictions={ODD}/labels", references, f"output={ODD}/scores")
    dlunet("export", checkpoint, "format=safetensors", f"output={ODD}/model")
    dlunet("report", f"runs={ODD}/chain", f"output={ODD}/report")
    assert {"prepared", "chain", "labels", "scores", "model", "report"} <= set(os.listdir(odd))
    assert set(os.listdir(place)) == before


def test_self_training_into_its_default_folder(place, dlunet):
    """The default folder is named after the dataset's folder and keeps an umlaut."""
    shutil.copytree(place / "flare22" / "Training" / "FLARE22_LabeledCase50", place / "Brustkörbe")
    shutil.copytree(place / "flare22" / "Training" / "FLARE22_UnlabeledCase1-1000", place / "Brustkörbe" / "imagesUn")
    names = f"data.names=[{','.join(label.name for label in FLARE22)}]"
    short = ("scale=tiny", "logger=csv", "data.workers=1", "trainer.max_epochs=1", "sampling.steps_per_epoch=1")
    dlunet("self_train", "data=folders", "data.root=Brustkörbe", names, *short)
    (folder,) = (place / "runs").iterdir()
    assert "Brustkörbe" in folder.name and (folder / "student" / "checkpoints" / "last.ckpt").is_file()


def test_the_home_folder(place, dlunet, monkeypatch):
    monkeypatch.setenv("HOME", str(place / "home"))
    (place / "home").mkdir()
    dlunet("export", "checkpoint=run/checkpoints/best.ckpt", "format=safetensors", "output=~/model")
    assert (place / "home" / "model").is_dir() and not (place / "~").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "checkpoint=gone", "input=flare22/Testing/images"),
        ("predict", "checkpoint=run/checkpoints/best.ckpt", "input=gone"),
        ("evaluate", "predictions=gone", "references=flare22/Testing/labels"),
        ("export", "checkpoint=gone", "format=onnx"),
        ("report", "runs=gone"),
        ("train", *TINY, "data.root=gone"),
        ("train", *TINY, "nonsense=1"),
        ("self_train", *TINY, "data.root=gone"),
    ],
)
def test_a_command_that_fails_at_once_leaves_no_folder(place, dlunet, words):
    before = set(os.listdir(place))
    dlunet(*words, "output=never/made", fails=True)
    assert set(os.listdir(place)) == before


@pytest.mark.parametrize(
    ("encoding", "words", "fails"),
    [
        ("ascii", ("--help",), False),
        ("cp1252", ("prepare", *TINY, "data.prepared=准备"), False),
        ("cp1252", ("doctor", *TINY), False),
        ("latin-1", ("evaluate", "predictions=gone", "references=x", "output=y"), True),
    ],
)
def test_output_that_is_not_utf8(place, dlunet_process, encoding, words, fails):
    """Characters that cannot be encoded do not stop a command."""
    fresh = words == ("--help",)  # it imports next to nothing
    assert dlunet_process(*words, cwd=place, fails=fails, fresh=fresh, PYTHONIOENCODING=encoding).all


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("home", [no_home, lambda: Path("/nonexistent")])
def test_a_user_of_whom_nothing_is_known(monkeypatch, dlunet, home):
    """As in a container: libraries that look for a home folder find a temporary one."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("USER", "")
    monkeypatch.setattr("dlunet.cli.Path.home", home)
    homes = []
    monkeypatch.setitem(cli.VERBS, "export", lambda config: homes.append(os.environ["HOME"]))
    dlunet("export", "checkpoint=x", "format=onnx", "output=x")
    found = Path(homes[0])
    assert found.is_dir() and found.stat().st_mode & 0o777 == 0o700 and os.access(found, os.W_OK)


def test_the_mode_of_weights_and_biases(place, dlunet, monkeypatch):
    """Disabled, it is skipped; online, the login is checked before any work is done."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = (*TINY, "logger=wandb", "trainer.max_epochs=1")
    dlunet("train", *settings, "output=disabled")
    assert not (place / "disabled" / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr("wandb.login", lambda timeout: False)
    message = dlunet("train", *settings, "output=online", fails=True)
    assert "logger.offline=false: Weights & Biases cannot be used (no API key); run `wandb login`" in message
    assert not (place / "online").exists()


def test_a_run_that_is_to_be_shorter_than_it_is(place, dlunet):
    settings = (*TINY, "experiment=sup_light", "output=longer")
    dlunet("train", *settings, "trainer.max_epochs=2")
    message = dlunet("train", *settings, "trainer.max_epochs=1", "resume=auto", fails=True)
    assert "trainer.max_epochs: found 1; expected at least 2" in message
    assert "max_epochs: 2" in (place / "longer" / "config.yaml").read_text()


def test_validation_cases_without_an_organ(place, dlunet):
    """No epoch can be the best, so the last one is used."""
    shutil.copytree(place / "flare22", place / "bare")
    label = place / "bare" / "Tuning" / "labels" / "FLARETs_0001.nii.gz"
    image = sitk.ReadImage(str(label))
    sitk.WriteImage(image * 0, str(label))
    message = dlunet("train", *TINY, "data.root=bare", "data.prepared=bare-prepared", "output=bare-run")
    assert "none of the 1 validation cases contains any class" in message
    assert "best checkpoint: bare-run/checkpoints/last.ckpt" in message
    assert not (place / "bare-run" / "checkpoints" / "best.ckpt").exists()


def test_self_training_that_cannot_end_does_not_begin(place, dlunet):
    """Too few unlabelled cases for the student are reported before the teacher is trained."""
    shutil.copytree(place / "flare22", place / "few", ignore=shutil.ignore_patterns("*Unlabeled*"))
    message = dlunet("self_train", *TINY, "data.root=few", "output=never", fails=True)
    assert "few: found 0 unlabelled cases; expected at least 2" in message
    assert not (place / "never" / "teacher").exists()


def test_an_export_in_flares_container(place, dlunet):
    """docker/predict.sh with another workspace: CTs in inputs give label maps of the same names in outputs, equal to
    those of the checkpoint."""
    root = place / "workspace"
    dlunet("export", "checkpoint=run/checkpoints/best.ckpt", "format=safetensors", f"output={root / 'model'}")
    shutil.copytree(place / "flare22" / "Testing" / "images", root / "inputs")
    command = Path(sys.executable).with_name("dlunet")
    environment = {"WORKSPACE": str(root), "DLUNET": str(command), "PATH": "/usr/bin:/bin", "PYTHONUTF8": "1"}
    script = ["bash", str(ROOT / "docker" / "predict.sh"), "engine=torch"]
    done = subprocess.run(script, cwd="/", env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    names = [path.name.replace("_0000", "") for path in sorted((root / "inputs").iterdir())]
    assert sorted(path.name for path in (root / "outputs").glob("*.nii.gz")) == names
    words = ("checkpoint=run/checkpoints/best.ckpt", f"input={root / 'inputs'}", "output=straight", "engine=torch")
    dlunet("predict", *words)
    for name in names:
        ours, theirs = (sitk.ReadImage(str(folder / name)) for folder in (root / "outputs", place / "straight"))
        assert (sitk.GetArrayFromImage(ours) == sitk.GetArrayFromImage(theirs)).all()


def test_help_lists_the_verbs(dlunet):
    message = dlunet("--help")
    for verb in ("prepare", "train", "predict", "evaluate", "report"):
        assert verb in message
