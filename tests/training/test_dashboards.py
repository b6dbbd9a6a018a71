"""What a run shows in the offline file of Weights & Biases and in TensorBoard, against values computed here."""

import csv
import json
from collections import defaultdict
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from dlunet.datasets import Case, Dataset
from dlunet.errors import UserError
from dlunet.inference import predict_logits
from dlunet.labels import FLARE22, LabelSet
from dlunet.methods import Averaged, Method, Stream, Trained
from dlunet.networks import load_bundle
from dlunet.phantom import write_phantoms
from dlunet.preparation import PreparedCase, prepare_dataset
from dlunet.training import RunFolder
from dlunet.training.dashboards.boards import DRAWN, draws
from dlunet.training.dashboards.probe import Patches, evaluating, probe
from dlunet.training.loggers import build_loggers
from tests.commands import ROOT, TINY
from tests.training.wandb_files import wandb_file, wandb_history, wandb_records

EPOCHS, STEPS = 2, 4
PATCH, SPACING = (16, 32, 32), (8.0, 8.0, 8.0)
SYNTHETIC = (*TINY, "data.root=synthetic", "trainer.max_epochs=2", "sampling.num_workers=0")
#: The unlabelled cases whose patches are probed: two of four, evenly spread.
PROBED = (1, 3)
#: The runs: their settings.
RUNS = {
    "cross_pseudo": ("experiment=ssl_light", "test=true", "logger.checkpoints=true"),
    "mean_teacher": ("experiment=sup_light", "method=mean_teacher"),
}
every_run = pytest.mark.parametrize("name", RUNS)

VALIDATION = "pictures/validation/FLARETs_0001"
#: What is logged at every step (at this scale), after every epoch, and once.
EACH_STEP = {
    "train/loss",
    "train/lr",
    *(f"time/{part}" for part in ("step", "data", "gradients", "update", "rest", "patches_per_second")),
    "memory/process_gib",
}
EACH_EPOCH = {"val/dsc", "val/dsc/LV", "val/dsc/RAG", VALIDATION}
OF_STEP = {
    "cross_pseudo": {f"train/{x}_{role}" for x in ("labelled", "unlabelled", "gradient_norm") for role in "ab"},
    "mean_teacher": {f"train/{x}_student" for x in ("labelled", "consistency", "gradient_norm")},
}
OF_EPOCH = {
    "cross_pseudo": {"probe/agreement_a_b", "pictures/mix"}
    | {f"probe/{x}_{role}" for x in ("confidence", "kept", "pseudo_dsc") for role in "ab"},
    "mean_teacher": {"probe/agreement_student_teacher"}
    | {f"probe/{x}_teacher" for x in ("confidence", "kept", "pseudo_dsc")},
}
#: The networks of each run by the prefix of their weights.
NETWORKS = {
    "cross_pseudo": {"a": "networks.a.", "b": "networks.b."},
    "mean_teacher": {"student": "networks.student.", "teacher": "networks.teacher.module."},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a synthetic dataset, without the truth of the unlabelled CTs."""
    folder = tmp_path_factory.mktemp("dashboards")
    make_phantoms(folder / "synthetic")
    return folder


def make_phantoms(root, truth=False):
    write_phantoms(root, 3, 4, 1, 2, seed=3, shape=(24, 40, 40), workers=1, truth=truth)


@pytest.fixture(scope="module")
def runs(place, dlunet_process):
    """The run folders of both methods, logged to Weights & Biases offline."""
    caches = {name: str(place / name) for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    for name, settings in RUNS.items():
        words = (*SYNTHETIC, *settings, "logger=wandb", f"output={name}")
        dlunet_process("train.py", *words, cwd=place, **caches)
    return {name: place / name for name in RUNS}


@every_run
def test_the_offline_file_has_every_panel(runs, name):
    history = wandb_history(wandb_file(runs[name]))
    counts = {panel: len(history[panel]) for panel in EACH_STEP | OF_STEP[name] | EACH_EPOCH | OF_EPOCH[name]}
    expected = dict.fromkeys(EACH_STEP | OF_STEP[name], EPOCHS * STEPS)
    expected |= dict.fromkeys(EACH_EPOCH | OF_EPOCH[name], EPOCHS)
    assert counts == expected
    for panel in EACH_EPOCH | OF_EPOCH[name]:
        if panel.startswith("probe/"):
            assert all(0 <= value <= 1 for value in history[panel])


@every_run
def test_the_parts_of_a_step_add_up(runs, name):
    history = wandb_history(wandb_file(runs[name]))
    parts = [np.array(history[f"time/{part}"]) for part in ("data", "gradients", "update", "rest")]
    steps, patches = np.array(history["time/step"]), {"cross_pseudo": 3, "mean_teacher": 2}[name]
    np.testing.assert_allclose(sum(parts), steps)
    assert all((part > 0).all() for part in parts)
    np.testing.assert_allclose(np.array(history["time/patches_per_second"]) * steps, patches)
    assert all(0.1 < gib < 100 for gib in history["memory/process_gib"])


@every_run
def test_the_same_validation_slice_is_shown_over_time(place, runs, name):
    case = PreparedCase.open(place / "prepared" / "8x8x8" / "labelled" / "FLARETs_0001")
    classes = [len(set(axial.ravel().tolist()) - {0}) for axial in case.label]
    shown = wandb_history(wandb_file(runs[name]))[VALIDATION]
    files = wandb_file(runs[name]).parent / "files"
    for picture in shown:
        assert picture["masks"].keys() == {"prediction", "reference"}
        reference = pixels(files / picture["masks"]["reference"]["path"])
        places = [z for z, axial in enumerate(case.label) if np.array_equal(axial, reference)]
        assert len(places) == 1 and classes[places[0]] == max(classes)
        assert pixels(files / picture["masks"]["prediction"]["path"]).shape == reference.shape
        hu = case.image[0, places[0]] * case.quantisation_step
        windowed = (hu * plan(runs[name]).intensity.std + plan(runs[name]).intensity.mean + 160) / 400
        np.testing.assert_allclose(pixels(files / picture["path"]), np.clip(windowed, 0, 1) * 255, atol=1)


def test_the_prediction_shown_is_that_of_the_network(place, runs):
    """Of the last epoch: its network is that of the last checkpoint."""
    case = PreparedCase.open(place / "prepared" / "8x8x8" / "labelled" / "FLARETs_0001")
    network = trained(runs["mean_teacher"], "networks.teacher.module.")
    image = torch.from_numpy(case.image.astype(np.float32)) * case.quantisation_step
    with torch.no_grad():
        predicted = predict_logits(network, image, PATCH).argmax(0).numpy()
    *_, last = wandb_history(wandb_file(runs["mean_teacher"]))[VALIDATION]
    files = wandb_file(runs["mean_teacher"]).parent / "files"
    reference, prediction = (pixels(files / last["masks"][name]["path"]) for name in ("reference", "prediction"))
    (z,) = (z for z, axial in enumerate(case.label) if np.array_equal(axial, reference))
    np.testing.assert_array_equal(prediction, predicted[z])


@every_run
def test_the_probe_says_what_the_networks_of_the_last_epoch_do(place, runs, truth, name):
    cases = [PreparedCase.open(place / "prepared/8x8x8/unlabelled" / f"Case_0000{k}") for k in PROBED]
    images = [middle(case.image[0] * np.float32(case.quantisation_step)) for case in cases]
    known = np.stack([middle(truth[k - 1]) for k in PROBED])
    found, confidence = {}, {}
    for role, prefix in NETWORKS[name].items():
        network = trained(runs[name], prefix)
        with torch.no_grad():
            p = [network(torch.from_numpy(image)[None, None]).double().softmax(1)[0].numpy() for image in images]
        found[role], confidence[role] = np.stack(p).argmax(1), np.stack(p).max(1)
    history = wandb_history(wandb_file(runs[name]))
    probed = {panel.removeprefix("probe/"): values for panel, values in history.items() if "probe/" in panel}
    first, last = ({panel: values[epoch] for panel, values in probed.items()} for epoch in (0, -1))
    expected = dice("_".join(["agreement", *found]), *found.values(), both=True)
    for role in ("a", "b") if name == "cross_pseudo" else ("teacher",):
        expected |= dice(f"pseudo_dsc_{role}", found[role], known, both=False)
        expected |= {f"confidence_{role}": confidence[role].mean(), f"kept_{role}": (confidence[role] >= 0.95).mean()}
    # A voxel whose two largest logits are equal to rounding may have either class.
    close = pytest.approx(expected, rel=5e-3, abs=1e-4)
    assert last == close and first != close
    assert len(expected) > 20


def test_a_mix_is_shown_with_the_pseudo_labels_of_both_networks(place, runs):
    shown = wandb_history(wandb_file(runs["cross_pseudo"]))["pictures/mix"]
    files = wandb_file(runs["cross_pseudo"]).parent / "files"
    first, last = (pixels(files / picture["path"]) for picture in shown)
    assert np.array_equal(first, last) and shown[0]["caption"] == "Case_00003 in Case_00001"
    cases = [PreparedCase.open(place / "prepared/8x8x8/unlabelled" / f"Case_0000{k}") for k in PROBED]
    intensity = plan(runs["cross_pseudo"]).intensity
    sources = [middle(case.image[0] * case.quantisation_step) * intensity.std + intensity.mean for case in cases]
    greys = [np.floor(np.clip((hu + 160) / 400, 0, 1) * 255) for hu in sources]
    fits = [[np.abs(first - grey[z]) <= 1 for z in range(PATCH[0])] for grey in greys]
    (z,) = (z for z in range(PATCH[0]) if (fits[0][z] | fits[1][z]).all())  # each pixel is of one of the two patches
    assert not fits[0][z].all() and not fits[1][z].all()
    assert "pictures/mix" not in wandb_history(wandb_file(runs["mean_teacher"]))
    for picture in shown:
        assert picture["masks"].keys() == {"by_a", "by_b"}
        assert all(pixels(files / mask["path"]).shape == PATCH[1:] for mask in picture["masks"].values())


def test_the_settings_are_those_of_the_run(runs):
    for name, run in runs.items():
        updates = [update for record in wandb_records(wandb_file(run)) for update in record.config.update]
        config = {update.key: json.loads(update.value_json) for update in updates if update.key}
        assert config["method"]["_target_"].endswith({"cross_pseudo": "CrossPseudo"}.get(name, "MeanTeacher"))
        assert config["sampling"]["steps_per_epoch"] == STEPS


def test_the_table_of_cases_has_their_scores_and_pictures(runs):
    run = runs["cross_pseudo"]
    assert len(wandb_history(wandb_file(run))["test/cases"]) == 1
    (artifact,) = (found for found in artifacts(run) if found.type == "run_table")
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    table = json.loads(files["test/cases.table.json"].read_text())
    with (run / "scores" / "scores.csv").open() as lines:
        scores = {(row["case"], row["organ"]): row for row in csv.DictReader(lines)}
    assert [row[0] for row in table["data"]] == ["FLARETs_0001", "FLARETs_0002"]
    for row in table["data"]:
        values = dict(zip(table["columns"], row, strict=True))
        assert pixels(files[values["picture"]["path"]]).shape == (40, 40)
        masks = {name: pixels(files[mask["path"]]) for name, mask in values["picture"]["masks"].items()}
        folders = {"prediction": run / "predictions", "reference": run.parent / "synthetic" / "Testing" / "labels"}
        assert masks.keys() == folders.keys()
        for name, folder in folders.items():
            stored = sitk.DICOMOrient(sitk.ReadImage(str(folder / f"{row[0]}.nii.gz")), "LPS")
            assert any(np.array_equal(masks[name], axial) for axial in sitk.GetArrayFromImage(stored)), name
        for metric in ("dsc", "nsd"):
            of_case = [float(scores[row[0], label.name][metric]) for label in FLARE22]
            assert [values[f"{metric} {label.abbreviation}"] for label in FLARE22] == pytest.approx(of_case)
            assert values[metric] == pytest.approx(sum(of_case) / 13)


def test_the_report_and_on_request_the_checkpoints_are_artifacts(runs):
    assert not artifacts(runs["mean_teacher"])
    kinds = defaultdict(list)
    for artifact in artifacts(runs["cross_pseudo"]):
        files = {entry.path for entry in artifact.manifest.contents}
        kinds[artifact.type].append((files, set(artifact.aliases) - {"latest"}))
    assert kinds["model"] == [({"best.ckpt"}, {"best"}), ({"last.ckpt"}, {"last"})]
    ((report, _),) = kinds["report"]
    assert {"index.html", "scores.csv", "panels.png"} <= report


def test_dashboards_change_neither_the_metrics_nor_the_weights(place, runs, dlunet):
    dlunet("train", *SYNTHETIC, *RUNS["cross_pseudo"][:1], "output=plain", cwd=place)
    plain, logged = place / "plain", runs["cross_pseudo"]
    assert (plain / "metrics.csv").read_text() == (logged / "metrics.csv").read_text()
    assert "time/" not in (plain / "metrics.csv").read_text()
    for one, other in zip(*(state(run).items() for run in (plain, logged)), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1]), one[0]


class TensorBoardLogger:
    """Lightning's, where TensorBoard is missing."""

    def __init__(self):
        raise ModuleNotFoundError("No module named 'tensorboard'")


class OtherLogger(TensorBoardLogger):
    """Another one that is not installed."""


@pytest.mark.parametrize(
    ("kind", "said"),
    [(TensorBoardLogger, r"'tensorboard'\); pip install 'dlunet\[tensorboard\]'$"), (OtherLogger, r"'tensorboard'\)$")],
)
def test_a_logger_that_is_not_installed_is_named(tmp_path, kind, said):
    logger = OmegaConf.create({"_target_": f"{__name__}.{kind.__name__}"})
    with pytest.raises(UserError, match=rf"^logger: .*{kind.__name__} is not installed \(.*{said}"):
        build_loggers(logger, RunFolder(tmp_path), 0, "stop")


def test_tensorboard_has_the_numbers_and_the_pictures(place, runs, dlunet):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = (*RUNS["cross_pseudo"][:1], "logger=tensorboard", "output=board")
    dlunet("train", *SYNTHETIC, *words, cwd=place)
    found = accumulators.EventAccumulator(str(place / "board" / "tensorboard"), size_guidance={"images": 0}).Reload()
    pictures = {VALIDATION: (3, 46), "pictures/mix": (3, 32)}
    assert set(found.Tags()["images"]) == pictures.keys()
    for tag, (columns, width) in pictures.items():
        images = found.Images(tag)
        assert [(image.width, image.step) for image in images] == [(columns * width, step) for step in (3, 7)]
    names = EACH_STEP | EACH_EPOCH | OF_STEP["cross_pseudo"] | OF_EPOCH["cross_pseudo"]
    assert {name for name in names if "pictures" not in name} <= set(found.Tags()["scalars"])
    history = wandb_history(wandb_file(runs["cross_pseudo"]))
    logged = [event.value for event in found.Scalars("probe/agreement_a_b/LV")]
    assert logged == pytest.approx(history["probe/agreement_a_b/LV"], rel=1e-6)


@pytest.mark.parametrize("precision", [pytest.param("bf16-true", marks=pytest.mark.slow), "64-true"])
def test_networks_of_another_precision_are_probed_and_shown(place, dlunet, precision):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    words = ("experiment=ssl_light", "logger=tensorboard", f"trainer.precision={precision}", f"output={precision}")
    dlunet("train", *SYNTHETIC, *words, "trainer.max_epochs=1", "sampling.steps_per_epoch=1", cwd=place)
    found = accumulators.EventAccumulator(str(place / precision / "tensorboard")).Reload().Tags()
    assert set(found["images"]) == {VALIDATION, "pictures/mix"}
    assert {name for name in OF_EPOCH["cross_pseudo"] if "pictures" not in name} <= set(found["scalars"])


class Constant(nn.Module):
    """Is equally sure of class 1 where the patch is positive, of class 2 elsewhere."""

    def __init__(self, confidence):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(2 * confidence / (1 - confidence)).log())  # of three classes

    def forward(self, x):
        sure = torch.cat([torch.zeros_like(x), x > 0, x <= 0], 1)
        return sure * self.logit


class Sure(Method):
    """Two networks, one of which has a moving average, and a threshold."""

    networks = {"a": Trained(), "b": Trained(), "slow": Averaged("a")}  # noqa: RUF012
    predicts = "slow"
    streams = {"labelled": Stream(labelled=True), "unlabelled": Stream(labelled=False)}  # noqa: RUF012
    threshold = 0.8


@torch.no_grad()
def test_the_probe_of_a_method_of_any_kind():
    """Pairs of trained networks, those with an average, and the threshold of the method."""
    labels = LabelSet("two", FLARE22.labels[:2])
    images = torch.tensor([[-1.0, 1.0], [1.0, 1.0]]).reshape(2, 1, 1, 1, 2)
    networks = {"a": Constant(0.7), "b": Constant(0.7), "slow": Constant(0.9)}
    values = probe(Sure(), networks, Patches(images, truth=torch.tensor([[1, 1], [1, 0]]).reshape(2, 1, 1, 2)), labels)
    agreements = {f"probe/agreement_{pair}{end}": 1.0 for pair in ("a_b", "a_slow") for end in ("", "/LV", "/RK")}
    # Found: 2 1 1 1; true: 1 1 1 0. Class 2 is not in the truth.
    teaching = {"probe/confidence_slow": 0.9, "probe/kept_slow": 1.0, "probe/pseudo_dsc_slow": 2 * 2 / 6}
    assert values == pytest.approx(agreements | teaching | {"probe/pseudo_dsc_slow/LV": 2 * 2 / 6})
    networks["slow"] = Constant(0.75)
    unknown = probe(Sure(), networks, Patches(images, truth=None), labels)
    assert unknown == pytest.approx(agreements | {"probe/confidence_slow": 0.75, "probe/kept_slow": 0.0})


@torch.no_grad()
@pytest.mark.parametrize(
    ("threshold", "kept"), [(torch.tensor(0.8), 1.0), (torch.tensor([0.5, 0.6, 0.7]), 0.0), ([0.5, 0.6, 0.7], 0.0)]
)
def test_a_threshold_for_each_class_is_not_that_of_the_probe(monkeypatch, threshold, kept):
    """A confidence of 0.9 is less than 0.95."""
    monkeypatch.setattr(Sure, "threshold", threshold)
    networks = {role: Constant(0.9) for role in ("a", "b", "slow")}
    patches = Patches(torch.ones(1, 1, 1, 1, 2), truth=None)
    assert probe(Sure(), networks, patches, LabelSet("two", FLARE22.labels[:2]))["probe/kept_slow"] == kept


def test_modes_are_restored_after_evaluation():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm3d(1)))
    module[1][0].eval()
    before = [part.training for part in module.modules()]
    with pytest.raises(ArithmeticError), evaluating(module):
        assert not any(part.training for part in module.modules()) and not torch.is_grad_enabled()
        raise ArithmeticError
    assert [part.training for part in module.modules()] == before and torch.is_grad_enabled()


def test_pictures_are_few_evenly_spread_and_of_validations():
    for epochs, every in product((1, 2, 7, 36, 400, 1000), (1, 2, 25, None)):
        trainer = SimpleNamespace(max_epochs=epochs, check_val_every_n_epoch=every, current_epoch=0)
        drawn = []
        for trainer.current_epoch in range(epochs):
            drawn += [trainer.current_epoch + 1] if draws(trainer) else []
        validated = [epoch for epoch in range(1, epochs + 1) if epoch % (every or 1) == 0]
        assert len(drawn) <= DRAWN and set(drawn) <= set(validated)
        assert drawn[-1:] == validated[-1:]
        assert len(set(np.diff(drawn))) <= 1
        assert len(drawn) == len(validated) or len(drawn) > DRAWN / 2


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The prepared label maps of the unlabelled CTs, by way of files with labels."""
    root = tmp_path_factory.mktemp("truth")
    make_phantoms(root / "synthetic", truth=True)
    images = sorted((root / "synthetic/Training/FLARE22_UnlabeledCase1-1000").iterdir())
    cases = [Case(path.name, path, root / "synthetic/Truth" / path.name.replace("_0000.", ".")) for path in images]
    prepared = prepare_dataset(Dataset(FLARE22, tuple(cases)), root / "prepared", SPACING, PATCH, workers=1)
    return [case.label for case in prepared.labelled]


def artifacts(run):
    return [record.artifact for record in wandb_records(wandb_file(run)) if record.artifact.name]


def state(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def plan(run):
    return load_bundle(run / "checkpoints" / "last.ckpt").plan


def trained(run, prefix):
    """A network of the last checkpoint."""
    network = load_bundle(run / "checkpoints" / "last.ckpt").network
    weights = {name.removeprefix(prefix): value for name, value in state(run).items() if name.startswith(prefix)}
    network.load_state_dict(weights)
    return network.eval()


def pixels(path):
    """The values (y, x) of a PNG."""
    return np.array(Image.open(path)).astype(int)


def middle(volume):
    """The patch in the middle of a volume (z, y, x) that is larger."""
    starts = [size // 2 - patch // 2 for size, patch in zip(volume.shape, PATCH, strict=True)]
    (z, y, x), (d, h, w) = starts, PATCH
    patch = volume[z : z + d, y : y + h, x : x + w]
    assert patch.shape == PATCH
    return np.ascontiguousarray(patch)


def dice(name, found, other, both):
    """The DSC of each class that ``other`` contains, or with ``both`` one of the two, and their mean."""
    by_class = {}
    for label in FLARE22:
        one, two = ({*np.flatnonzero(voxels == label.id).tolist()} for voxels in (found, other))
        if two or (both and one):
            by_class[f"{name}/{label.abbreviation}"] = 2 * len(one & two) / (len(one) + len(two))
    return {name: sum(by_class.values()) / len(by_class), **by_class}


def test_the_page_has_the_measured_cost():
    results = json.loads((ROOT / "benchmarks" / "results" / "dashboard_cost.json").read_text())
    page = " ".join((ROOT / "docs" / "dashboards.md").read_text().split())
    wandb, tensorboard = (
        [f"{100 * results[board][share]:.1f} %" for share in ("share", "share_with_beginning")]
        for board in ("wandb", "tensorboard")
    )
    assert f"they take {wandb[0]} and {tensorboard[0]} of the time of a training" in page
    assert f"{wandb[1]} and {tensorboard[1]} with what they do once at its beginning" in page


def test_a_resumed_run_is_one_run_of_weights_and_biases(place, dlunet_process):
    """Also if it is started again when it is finished: the id is that of before."""
    words = ("train", *SYNTHETIC, "experiment=sup_light", "output=resumed", "logger=wandb", "resume=auto")
    for epochs in (1, 2, 2):
        dlunet_process(*words, f"trainer.max_epochs={epochs}", cwd=place)
    files = sorted((place / "resumed").glob("wandb/offline-run-*/*.wandb"))
    ids = {record.run.run_id for file in files for record in wandb_records(file) if record.HasField("run")}
    assert ids == {(place / "resumed" / "wandb_id.txt").read_text()}
    steps = [step for file in files for step in wandb_history(file).get("trainer/global_step", [])]
    assert {*range(EPOCHS * STEPS)} <= {*map(int, steps)}
