"""Properties of every registered method; registering a new one is enough to test it here."""

import copy
import os
import signal
from pathlib import Path

import lightning
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from dlunet.configs import CONFIGS
from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.losses import DeepSupervisionLoss
from dlunet.methods import METHODS, Progress, Step
from dlunet.networks import load_bundle
from dlunet.preparation import Intensity, Plan
from dlunet.training import SegmentationModule, train
from dlunet.training.build import build_module
from tests.forked import exit_code_of
from tests.methods.equations import EQUATIONS, SETTINGS, expected_terms

PATCH, CLASSES, BATCH, SEED = (4, 6, 8), 3, 2, 5

every_method = pytest.mark.parametrize("name", METHODS)
#: Tests that start processes take seconds per method: `make test` covers a method with a moving average and one with
#: its own state, `make test-full` all methods.
QUICK = ("mean_teacher", "dhc")
in_processes = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS]
)
semi_supervised = pytest.mark.parametrize("name", [name for name in METHODS if name != "supervised"])


def test_every_method_has_a_config_and_its_equations():
    configs = {path.stem for path in (CONFIGS / "method").glob("*.yaml")}
    assert METHODS.keys() == EQUATIONS.keys() == SETTINGS.keys() == configs


class TwoParts(nn.Module):
    """A small network with features between two parts."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 8, 3, padding=1), nn.Conv3d(8, CLASSES, 1)

    def forward(self, x):
        return self.decode(self.encode(x))

    def encode(self, x):
        return [self.first(x).tanh()]

    def decode(self, features):
        return 3 * self.second(features[0])


class WeightedCrossEntropy(nn.Module):
    """Cross entropy with voxel and class weights."""

    def forward(self, logits, target, weight=None, class_weight=None):
        weights = torch.ones(target.shape, dtype=logits.dtype) if weight is None else weight
        weights = weights if class_weight is None else weights * class_weight[target]
        return (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()


class Noting(dict):
    """A stream's patches, recording which views are accessed."""

    def __init__(self, stream, patches, seen):
        super().__init__(patches)
        self.stream, self.seen = stream, seen

    def __getitem__(self, view):
        self.seen.add((self.stream, view))
        return super().__getitem__(view)


def draw_batch(method, patch=PATCH, classes=CLASSES, dtype=torch.float64, seed=1):
    """Random patches for the streams that a method declares."""
    generator, batch = torch.Generator().manual_seed(seed), {}
    for stream_name, stream in method.streams.items():
        count = BATCH * stream.times
        batch[stream_name] = {
            view: torch.randn(count, 1, *patch, generator=generator, dtype=dtype) for view in stream.views
        }
        if stream.has_label:
            batch[stream_name]["label"] = torch.randint(0, classes, (count, *patch), generator=generator)
    return batch


#: The terms whose loss is that of pseudo-labels.
OF_PSEUDO_LABELS = ("unlabelled", "pseudo_labelled", "strong", "features")


class OfPseudoLabels(WeightedCrossEntropy):
    """Another loss than that of labels."""

    def forward(self, *arguments, **settings):
        return 3 * super().forward(*arguments, **settings)


@pytest.fixture
def make_step():
    def make(method, fraction=0.15):
        torch.manual_seed(0)
        networks = {role: TwoParts().double() for role in method.networks}
        losses = (DeepSupervisionLoss(WeightedCrossEntropy()), DeepSupervisionLoss(OfPseudoLabels()))
        return Step(
            networks, draw_batch(method), *losses, Progress(3, 1, fraction), torch.Generator().manual_seed(SEED)
        )

    return make


@pytest.mark.parametrize(("name", "settings"), [(name, settings) for name in METHODS for settings in SETTINGS[name]])
def test_the_terms_are_those_of_the_equations(name, settings, make_step):
    method = METHODS[name](**settings)
    method.setup(CLASSES)
    method.double()
    step = make_step(method)
    terms, expected = method.losses(step), expected_terms(name, settings, step, SEED)
    assert {role: list(named) for role, named in terms.items()} == {k: list(v) for k, v in expected.items()}
    for role, named in expected.items():
        for term, value in named.items():
            value = 3 * value if term in OF_PSEUDO_LABELS else value
            torch.testing.assert_close(terms[role][term], value, msg=lambda text, term=term: f"{term}: {text}")


@every_method
def test_each_network_learns_from_its_own_terms_alone_and_no_teacher_learns(name, make_step):
    method = METHODS[name]()
    method.setup(CLASSES)
    method.double()
    step = make_step(method)
    terms = method.losses(step)
    assert terms.keys() == method.trained.keys()
    for role, named in terms.items():
        for network in step.networks.values():
            network.zero_grad()
        sum(named.values()).backward(retain_graph=True)
        with_gradient = {r for r, n in step.networks.items() if any(p.grad is not None for p in n.parameters())}
        assert with_gradient == {role}


@every_method
def test_exactly_the_declared_streams_and_views_are_used(name, make_step):
    method, seen = METHODS[name](), set()
    method.setup(CLASSES)
    method.double()
    step = make_step(method)
    step = Step(
        step.networks, {stream: Noting(stream, patches, seen) for stream, patches in step.batch.items()},
        step.loss, step.pseudo_loss, step.progress, step.generator,
    )  # fmt: skip
    method.losses(step)
    assert seen == {(stream, view) for stream, patches in step.batch.items() for view in patches}


@semi_supervised
def test_supervised_epochs_take_labels_alone(name, make_step):
    method = METHODS[name](supervised_epochs=2)
    method.setup(CLASSES)
    method.double()
    assert method.needs_unlabelled and method.streams_in(2) == method.streams
    assert all(stream.labelled for stream in method.streams_in(1).values())
    step = make_step(method)
    for stream in set(step.batch) - set(method.streams_in(1)):
        del step.batch[stream]
    terms = method.losses(step)
    assert terms.keys() == method.trained.keys()
    for role, named in terms.items():
        assert list(named) == ["labelled"]
        if name not in ("bcp", "dhc"):  # bcp mixes patches, dhc weights classes
            torch.testing.assert_close(named["labelled"], step.from_labels(step.networks[role])["labelled"])


def test_bcp_mixes_labelled_patches_and_their_labels_alike_in_its_pre_training(make_step):
    method = METHODS["bcp"](supervised_epochs=2)
    step = make_step(method.double())
    first, second = step.batch["labelled"], step.batch["labelled_j"]
    for stream in ("unlabelled_p", "unlabelled_q"):
        del step.batch[stream]
    shape = first["weak"].shape
    boxes = method.draw_boxes(shape[0], shape[2:], torch.Generator().manual_seed(SEED))
    found = method.losses(step)["student"]["labelled"]
    patches = torch.where(boxes[:, None], second["weak"], first["weak"])
    labels = torch.where(boxes, second["label"], first["label"])
    assert 0 < boxes.double().mean() < 1
    torch.testing.assert_close(found, step.loss(step.networks["student"](patches), labels))


class Weights(lightning.Callback):
    """Records the weights of every network after each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append({role: copy.deepcopy(network.state_dict()) for role, network in module.networks.items()})


OF_THE_NETWORK, OF_THE_STUDENT = {"average_a": "a"}, {"teacher": "student"}
#: What each moving average with ``decay`` is of, by method (dhc's decay is that of class frequencies).
AVERAGES = {
    "bcp": OF_THE_STUDENT, "cross_pseudo": {"average_a": "a", "average_b": "b"}, "mean_teacher": OF_THE_STUDENT,
    "pseudo_label": OF_THE_NETWORK, "supervised": OF_THE_NETWORK, "ua_mt": OF_THE_STUDENT,
}  # fmt: skip
#: What predicts then, if not the network ``a``.
PREDICTING = {
    "bcp": ["student"], "cross_pseudo": ["average_a"], "dhc": ["a", "b"], "mean_teacher": ["teacher"],
    "pseudo_label": ["average_a"], "supervised": ["average_a"], "ua_mt": ["teacher"],
}  # fmt: skip


@every_method
@pytest.mark.filterwarnings("ignore")
def test_averages_have_their_closed_form_in_a_real_run(name, compose, tmp_path):
    """Also, the checkpoint loads as the network that predicts."""
    decay = ["method.decay=0.6"] if name in AVERAGES else []
    config = compose("train", [f"method={name}", "scale=tiny", "output=x", *decay])
    plan = Plan((8.0, 8.0, 8.0), tuple(config.plan.patch_size), Intensity(0, 1, 0, 1))
    module = build_module(config, plan, FLARE22)
    batches = [draw_batch(module.method, plan.patch_size, FLARE22.num_classes, torch.float32, k) for k in range(4)]
    assert {role: average.of for role, average in module.method.averaged.items()} == AVERAGES.get(name, {})
    assert module.method.predicting == PREDICTING.get(name, ["a"])
    notes = Weights()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, callbacks=[notes],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    for role in module.method.trained:
        assert any(not torch.equal(notes.seen[0][role][k], v) for k, v in notes.seen[-1][role].items())
    for role, average in module.method.averaged.items():
        d, n = 0.6, len(notes.seen) - 1
        assert all(not p.requires_grad and p.grad is None for p in module.networks[role].parameters())
        for key, found in notes.seen[-1][role].items():
            if key.startswith("module."):
                first, *later = (weights[average.of][key.removeprefix("module.")] for weights in notes.seen)
                expected = d**n * first + (1 - d) * sum(d ** (n - 1 - k) * w for k, w in enumerate(later))
                torch.testing.assert_close(found, expected)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    network, roles = load_bundle(checkpoint).network, module.method.predicting
    predicting = network.members if len(roles) > 1 else [network]
    for role, loaded in zip(roles, predicting, strict=True):
        expected = {k.removeprefix("module."): v for k, v in notes.seen[-1][role].items()}
        assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())


@pytest.fixture(scope="module")
def place(tiny_flare22, tiny_abdomen, write_volume, tmp_path_factory):
    """A dataset with enough cases for two processes of any method, and pseudo-labels."""
    folder = tmp_path_factory.mktemp("conformance")
    tiny_flare22(folder / "flare22", labelled=4, unlabelled=4, validation=1, test=0)
    for number in range(1, 5):
        abdomen = tiny_abdomen(3 + number)  # the unlabelled cases follow the labelled ones
        grid = {"spacing": abdomen.spacing, "orientation": "RAS"}
        write_volume(folder / "pseudo_labels" / f"Case_{number:05}.nii.gz", abdomen.labels, **grid)
    return folder


@pytest.fixture
def run_config(place, compose):
    def make(name, output, *words):
        if METHODS[name]().needs_pseudo_labels:
            words = (f"data.pseudo_labels={place}/pseudo_labels", *words)
        config = compose(
            "train",
            [
                f"method={name}", "scale=tiny", "data=flare22", f"data.root={place}/flare22", "logger=csv",
                f"data.prepared={place}/prepared", "data.workers=1", f"output={place}/{output}", "name=x",
                "sampling.batch_size=2", "sampling.steps_per_epoch=2", "trainer.accelerator=cpu", *words,
            ],
        )  # fmt: skip
        return config

    return make


def _train(config: DictConfig, killed_at: tuple[int, int] | None = None) -> None:
    torch.set_num_threads(1)
    step = SegmentationModule.training_step

    def step_or_die(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with steps_file(config.output).open("a") as file:
            file.write(f"{self.global_rank} {self.current_epoch} {batch_idx}\n")
        step(self, batch, batch_idx)

    SegmentationModule.training_step = step_or_die
    train(config)


def steps_file(output: str | Path) -> Path:
    """The file that records the process, epoch and index of each step."""
    return Path(f"{output}.steps")


def steps(run: Path) -> list[tuple[int, ...]]:
    """The steps done by all processes of all commands, as (process, epoch, index)."""
    return [tuple(map(int, line.split())) for line in steps_file(run).read_text().splitlines()]


@in_processes
def test_killed_and_resumed_it_goes_on_bitwise(name, place, run_config):
    whole, killed = run_config(name, f"{name}-whole"), run_config(name, f"{name}-killed", "resume=auto")
    assert exit_code_of(_train, whole) == 0
    assert exit_code_of(_train, killed, (1, 1)) == -signal.SIGKILL
    assert exit_code_of(_train, killed) == 0
    # No step is repeated: each epoch has a checkpoint one step before its validation.
    assert steps(place / f"{name}-killed") == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]
    expected, found = (losses(place / f"{name}-{run}") for run in ("whole", "killed"))
    assert len(expected) == 4
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    before, after = (weights(place / f"{name}-{run}") for run in ("whole", "killed"))
    assert before.keys() == after.keys() and all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.slow  # `make test` compares two processes with one in tests/training/test_launch.py
@pytest.mark.parametrize("accumulated", [1, 2])
@every_method
def test_two_processes_learn_what_one_does_with_their_patches(name, accumulated, place, run_config):
    words = (
        f"sampling.accumulate_grad_batches={accumulated}", "sampling.steps_per_epoch=5", "trainer.max_epochs=1",
        "trainer.precision=64-true",
    )  # fmt: skip
    runs = [f"{name}-{accumulated}-{part}" for part in ("alone", "shared")]
    alone = run_config(name, runs[0], *words, "sampling.batch_size=2")
    in_two = ("sampling.batch_size=1", "trainer.devices=2", "+trainer.strategy=ddp_fork")
    assert exit_code_of(_train, alone) == 0
    assert exit_code_of(_train, run_config(name, runs[1], *words, *in_two)) == 0
    assert sorted(steps(place / runs[1])) == [(rank, 0, step) for rank in (0, 1) for step in range(5)]
    expected, found = (losses(place / run) for run in runs)
    assert len(expected) == 5
    pd.testing.assert_frame_equal(found, expected, rtol=0, atol=1e-6)
    before, after = (weights(place / run) for run in runs)
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@semi_supervised
def test_without_unlabelled_cases_it_says_so(name, tiny_flare22, tmp_path, run_config):
    tiny_flare22(tmp_path / "flare22", labelled=2, unlabelled=0, validation=1, test=0)
    config = run_config(name, f"{name}-none")
    config.data.root, config.data.prepared = str(tmp_path / "flare22"), str(tmp_path / "prepared")
    assert instantiate(config.method).needs_unlabelled
    with pytest.raises(UserError, match=r"found 0 (un|pseudo-)labelled cases; expected at least"):
        train(config)


def losses(run: Path) -> pd.DataFrame:
    """The loss terms of each step."""
    table = pd.read_csv(run / "metrics.csv")
    return table.loc[table["train/loss"].notna(), [c for c in table if c.startswith("train/")]].reset_index(drop=True)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
