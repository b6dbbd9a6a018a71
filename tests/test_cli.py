"""The command line as a user meets it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

from dlunet import cli

ROOT = Path(__file__).parents[1]
REAL_CT = ROOT.parent / "shared" / "data" / "ct_abdomen_3mm.nii.gz"


def run(place: Path, *words: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


TINY = ("scale=tiny", "data=flare22", "data.root=flare22", "logger=csv", "output=bad")


@pytest.fixture(scope="module")
def place(tiny_flare22, tmp_path_factory):
    """A working folder with a dataset and a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_flare22(folder / "flare22")
    settings = ("scale=tiny", "data=flare22", "data.root=flare22", "logger=csv", "output=run")
    run(folder, str(ROOT / "train.py"), "experiment=sup_light", *settings)
    return folder


@pytest.fixture
def dlunet(place, monkeypatch, capfd):
    """``dlunet(verb, …, expect=0)`` runs the command in this process and returns what it printed."""

    def call(*words: str, expect: int = 0) -> str:
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["dlunet", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        printed = "".join(capfd.readouterr())
        assert code == expect, printed
        assert "Traceback" not in printed and "Error executing job" not in printed
        return printed

    return call


@pytest.fixture
def predict(dlunet):
    """``predict(input, output, …)`` segments with the trained run."""

    def call(source: Path | str, output: str, *more: str, expect: int = 0) -> str:
        words = ("checkpoint=run/checkpoints/best.ckpt", f"input={source}", f"output={output}", *more)
        return dlunet("predict", *words, expect=expect)

    return call


def test_from_labels_to_report(place):
    words = ("checkpoint=run/checkpoints/best.ckpt", "input=flare22/Testing/images", "output=run/predictions")
    run(place, str(ROOT / "predict.py"), *words)
    scores = ("predictions=run/predictions", "references=flare22/Testing/labels", "output=run/scores")
    run(place, "-m", "dlunet", "evaluate", *scores)
    assert "report: " in run(place, "-m", "dlunet", "report", "runs=run", "output=page")
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
    message = predict("flare22/Testing/images", "other", "flips=axes", expect=1)
    assert "flips" in message and "other" in message


def test_bad_cases_are_named_and_the_others_done(place, predict):
    inputs = place / "inputs"
    shutil.copytree(place / "flare22" / "Testing" / "images", inputs)
    (inputs / "broken_0000.nii.gz").write_bytes(b"no NIfTI")
    message = predict("inputs", "mixed", expect=1)
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
        (("predict", "checkpoint=run/checkpoints/best.ckpt", "input=run", "output=x"), ("run: holds no CT",)),
        (("predict", "checkpoint=x", "input=x", "output=x", "flips=some"), ("flips", "some", "none, axes, full")),
        (("predict", "checkpoint=x", "input=x", "output=x", "step=0"), ("step", "above 0")),
        (
            ("predict", "checkpoint=x", "input=flare22/Testing/images", "output=x", "postprocess=nice"),
            ("largest, holes",),
        ),
        (
            ("predict", "checkpoint=x", "input=flare22/Testing/images", "output=x", "engine=keras"),
            ("engine", "openvino"),
        ),
        (("export", "checkpoint=run/checkpoints/best.ckpt", "format=keras", "output=x"), ("format", "keras", "onnx")),
        (("predict", "checkpoint=run", "input=flare22/Testing/images", "output=x"), ("run: is no exported network",)),
        (("predict", "chekpoint=x"), ("dlunet: Could not override 'chekpoint'", "`dlunet predict --help`")),
        (("doctor", "data=folder"), ("data/folder", "folders")),
        (("doctor", "data=folders", "x"), ("Error parsing override 'x'",)),
        (("doctor", "data=folders", "data.names=[a,b"), ("dlunet: ", "[a,b")),
        (("evaluate", "predictions=gone", "references=gone", "output=x"), ("gone",)),
        (("report", "runs=flare22", "output=x"), ("flare22",)),
        (("prepare", "data=flare22", "data.root=gone"), ("gone", "no such folder")),
        (("prepare", "data=flare22"), ("missing: data.root",)),
        (("train", *TINY, "data.root=run"), ("run", "no labelled case", "FLARE22")),
        (("train", *TINY, "experiment=nonsense"), ("experiment/nonsense", "ssl_light")),
        (("train", *TINY, "plan.patch_size=[15,32,32]"), ("plan.patch_size", "[15, 32, 32]", "multiples")),
        (("train", *TINY, "network.features=[4,8]"), ("network", "2 features", "strides")),
        (("train", *TINY, "trainer.devices=3"), ("found 4 unlabelled", "at least 6")),
        (("train", *TINY, "output=run"), ("run", "already holds a run", "resume=auto")),
        (("nonsense",), ("unknown verb 'nonsense'", "usage")),
    ],
)
def test_bad_input_ends_in_one_message(dlunet, words, expected):
    message = dlunet(*words, expect=1)
    assert "HYDRA" not in message and "hydra.cc" not in message
    for part in expected:
        assert part in message


def test_a_chain_that_cannot_end_does_not_begin(place, dlunet):
    """The student's want of unlabelled cases is known before the teacher is trained."""
    shutil.copytree(place / "flare22", place / "few", ignore=shutil.ignore_patterns("*Unlabeled*"))
    message = dlunet("chain", *TINY, "data.root=few", "output=never", expect=1)
    assert "few: found 0 unlabelled cases; expected at least 2" in message
    assert not (place / "never" / "teacher").exists()


def test_an_export_in_flares_container(place, dlunet):
    """The script, run on a made-up root: CTs in inputs, labels of the same names in outputs, the checkpoint's own."""
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
