"""Invalid settings are refused before any work begins, and every choice in conf/ is accepted."""

import copy
import subprocess
import time
from contextlib import suppress
from itertools import zip_longest

import pandas as pd
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_method, instantiate
from omegaconf import OmegaConf

from dlunet import configs
from dlunet.configs import CONFIGS, register_resolvers, with_default_scale
from dlunet.errors import UserError
from dlunet.networks import build_network
from dlunet.settings import RULES, check_settings, unused_of_recipe

WRONG = [
    "data.workers=0",
    "data.workers=-1",
    "data.workers=two",
    "data.workers=1.5",
    "+data.folds=1",
    "plan.spacing=[0,1,1]",
    "plan.spacing=[-8,8,8]",
    "plan.spacing=[8,8]",
    "plan.spacing=8",
    "plan.spacing=[a,b,c]",
    "plan.spacing=[.nan,1,1]",
    "plan.patch_size=[0,32,32]",
    "plan.patch_size=[16,32]",
    "plan.patch_size=[16.5,32,32]",
    "+plan.memory_gb=0",
    "checkpoint.every_n_steps=0",
    "checkpoint.every_n_minutes=-1",
    "checkpoint.on_full=panic",
    "sampling.batch_size=0",
    "sampling.accumulate_grad_batches=0",
    "sampling.steps_per_epoch=0",
    "sampling.num_workers=-1",
    "sampling.foreground_fraction=2",
    "sampling.foreground_fraction=-0.1",
    "trainer.max_epochs=0",
    "trainer.max_epochs=many",
    "trainer.max_epochs=null",
    "trainer.check_val_every_n_epoch=0",
    "augmentation.affine_probability=7",
    "augmentation.affine_probability=often",
    "method.ramp=1.5",
    "method.decay=-1",
    "method.decay=1",
    "method.strong=maybe",
    "+method.noise=-0.1",
    "+method.passes=0",
    "+method.window=0",
    "+method.dropout=1",
    "+method.cut_mix_probability=1.5",
    "+method.box=0",
    "+method.consistency_weight=-1",
    "+method.entropy_weight=-1",
    "optimizer.algorithm.lr=0",
    "optimizer.algorithm.lr=.inf",
    "optimizer.gradient_clip=-1",
    "method.unlabelled_weight=-1",
    "+method.threshold=1.5",
    "method.num_boxes=-1",
    "method.supervised_epochs=soon",
    "trainer.devices=two",
    "trainer.devices=0",
    "trainer.devices=1.5",
    "trainer.devices=0-3",
    "trainer.devices=[]",
    "trainer.devices=null",
    "+trainer.num_nodes=x",
    "+shard=4/3",
    "+shard=3",
    "seed=-1",
    "seed=4294967296",
    "seed=zero",
    "resume=yes",
    "+table=2",
    "+table=three",
    "+rounds=0",
    "+rounds=1.5",
    "+rounds=null",
    "+agreement=1.1",
    "+agreement=-0.1",
    "+agreement=null",
    "logger.checkpoints=maybe",
    "strict=maybe",
    "sampling.repeat=2",
    "dry_run=1",
    "+tile_step=0",
    "+tile_step=half",
    "+tile_step=null",
    "+flips=some",
    "+flips=null",
    "+volumes=maybe",
    "+overlay=1",
    "+report=1",
    "test=1",
]


@pytest.fixture(scope="module")
def default():
    """The config of ``train`` without any setting."""
    return configs.compose("train")


@pytest.mark.parametrize("override", WRONG)
def test_a_setting_that_cannot_be_is_named(default, override):
    """Set in a composed config, because composing takes long; that settings get there is Hydra's part."""
    parsed, config = OverridesParser.create().parse_override(override), copy.deepcopy(default)
    name, value = parsed.key_or_group, override.partition("=")[2]
    assert parsed.is_add() == (OmegaConf.select(config, name, default=...) is ...)
    OmegaConf.update(config, name, parsed.value(), force_add=True)
    found = "None" if value == "null" else f".*{value.strip('[].')[:1]}.*"
    with pytest.raises(UserError, match=rf"^{name}: found {found}; expected "):
        check_settings(config)


@pytest.mark.parametrize("devices", ["1", "-1", "auto", "[0,2]", "'0,2'", "'3'"])
def test_ways_to_choose_devices(default, devices):
    config = copy.deepcopy(default)
    config.trainer.devices = OverridesParser.create().parse_override(f"x={devices}").value()
    check_settings(config)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [("limit_train_batches", 100, "sampling.steps_per_epoch"), ("max_time", "00:12:00:00", "trainer.max_epochs, or")],
)
def test_what_would_end_an_epoch_early_is_refused(default, name, value, instead):
    config = copy.deepcopy(default)
    OmegaConf.update(config, f"trainer.{name}", value, force_add=True)
    with pytest.raises(UserError, match=rf"^trainer\.{name}: found {value}, which would .*; use {instead}"):
        check_settings(config)


@pytest.mark.parametrize(
    ("name", "instead"),
    [("accumulate_grad_batches", "sampling.accumulate_grad_batches"), ("gradient_clip_val", "optimizer.gradient_clip")],
)
def test_what_lightning_cannot_do_with_gradients_is_refused(default, name, instead):
    """These settings of ours exist."""
    config = copy.deepcopy(default)
    assert OmegaConf.select(config, instead) is not None
    OmegaConf.update(config, f"trainer.{name}", 4, force_add=True)
    with pytest.raises(UserError, match=rf"^trainer\.{name}: found 4, .* gradients .*; use {instead}$"):
        check_settings(config)


@pytest.mark.parametrize("part", ["plan", "optimizer.algorithm"])
def test_a_part_that_is_null_is_named(compose, part):
    with pytest.raises(UserError, match=rf"^{part}: found null; expected its settings"):
        check_settings(compose("train", [f"{part}=null"]))


def test_every_rule_is_tried():
    assert {override.lstrip("+").split("=")[0] for override in WRONG} == set(RULES) - {"runs", "predictions"}


def test_every_number_of_a_method_has_a_rule():
    for path in (CONFIGS / "method").glob("*.yaml"):
        settings = OmegaConf.to_container(OmegaConf.load(path))
        numbers = [name for name, value in settings.items() if isinstance(value, int | float)]
        assert {f"method.{name}" for name in numbers} <= set(RULES), path.name


def test_several_checkpoints_are_refused(compose):
    with pytest.raises(UserError, match=r"^checkpoint: found a list of 2; expected one file or folder"):
        check_settings(compose("predict", ["checkpoint=[a.ckpt,b.ckpt]", "input=a", "output=b"]))


#: Table 2 of the paper, and the settings of the authors' program.
TABLE_2 = {
    "trainer.max_epochs": 1000,
    "trainer.precision": "16-mixed",
    "sampling.steps_per_epoch": 250,
    "sampling.batch_size": 1,
    "sampling.foreground_fraction": 0.3333,
    "plan.spacing": [2.5, 1.5, 1.5],
    "plan.patch_size": [56, 160, 160],
    "optimizer.algorithm._target_": "torch.optim.SGD",
    "optimizer.algorithm.lr": 0.01,
    "optimizer.algorithm.momentum": 0.99,
    "optimizer.algorithm.nesterov": True,
    "optimizer.algorithm.weight_decay": 3e-5,
    "optimizer.gradient_clip": 12,
    "method.unlabelled_weight": 0.8,
    "method.num_boxes": 3,
    "method.supervised_epochs": 0,
    "method.decay": 0,
    "method.strong": False,
    "augmentation.affine_probability": 0.2,
    "augmentation.affine.degrees": 30,
    "augmentation.affine.scales": [0.7, 1.4],
    "augmentation.flip.flip_probability": 0.5,
    "augmentation.flip.axes": [0, 1, 2],
}
HALVED = {
    "optimizer.schedule._target_": "dlunet.training.schedules.Halving",
    "optimizer.schedule.every": 200,
    "loss._target_": "dlunet.losses.RobustSegmentationLoss",
    "loss.denominator": "linear",
    "loss.tce_variant": "paper",
}
AS_PUBLISHED = {
    "optimizer.schedule._target_": "dlunet.training.schedules.Poly",
    "optimizer.schedule.power": 0.9,
    "loss.first._target_": "dlunet.losses.DiceCrossEntropyLoss",
    "loss.then._target_": "dlunet.losses.RobustSegmentationLoss",
    "loss.then.tce_variant": "published",
    "loss.epoch": 200,
}


@pytest.mark.parametrize(("experiment", "further"), [("ssl_light", HALVED), ("ssl_light_as_published", AS_PUBLISHED)])
def test_the_scale_of_the_paper_trains_as_it_says(compose, experiment, further):
    config = compose("train", [f"experiment={experiment}", "scale=paper"])
    expected = {**TABLE_2, **further}
    assert {name: OmegaConf.select(config, name) for name in expected} == expected
    assert config.pseudo_loss == config.loss


def test_no_run_to_report(compose):
    with pytest.raises(UserError, match=r"runs: found \[\]; expected at least one folder"):
        check_settings(compose("report", ["runs=[]"]))


def test_a_run_that_ends_before_its_unlabelled_part_is_refused(compose):
    with pytest.raises(UserError, match=r"^trainer.max_epochs: found 6, of which 6 are on labels alone .*_epochs=1$"):
        check_settings(compose("train", ["scale=cpu", "trainer.max_epochs=6"]))


def test_cross_teaching_of_equal_networks_is_refused(compose):
    with pytest.raises(UserError, match=r"^other_network: found PlainUNet, as in network; .* network@other_network="):
        check_settings(compose("train", ["method=cross_teaching", "network=plain"]))
    for words in (["network=plain", "network@other_network=light"], []):
        check_settings(compose("train", ["method=cross_teaching", *words]))


@pytest.mark.parametrize(
    "words",
    [["debug=fast"], ["debug=profile"], ["trainer.max_epochs=7"], ["method=supervised", "trainer.max_epochs=1"]],
)
def test_a_short_run_may_have_an_unlabelled_part_or_no_need_of_it(compose, words):
    check_settings(compose("train", ["scale=cpu", *words]))


#: Groups of which one choice each is composed together: none of these changes what another one sets.
TOGETHER = (
    "augmentation",
    "callback",
    "data",
    "loss",
    "method",
    "network",
    "optimizer/schedule",
    "pseudo_loss",
)


def choices(group):
    return [f"{group}={file.stem}" for file in sorted((CONFIGS / group).glob("*.yaml"))]


CHOICES = [
    *([choice] for group in ("debug", "experiment", "optimizer", "recipe", "scale") for choice in choices(group)),
    *([choice for choice in some if choice] for some in zip_longest(*map(choices, TOGETHER))),
]


@pytest.mark.parametrize("words", CHOICES, ids=" ".join)
def test_every_choice_passes_and_can_be_built(compose, words):
    config = compose("train", words if words[0].startswith("scale=") else ["scale=tiny", *words])
    check_settings(config)
    for part in (config.augmentation, config.loss, config.method, config.optimizer.schedule):
        assert instantiate(part, _convert_="all") is not None
    network = {k: v for k, v in OmegaConf.to_container(config.network, resolve=True).items() if v is not None}
    parameters = build_network({**network, "num_classes": 3}).parameters()
    assert instantiate(config.optimizer.algorithm)(parameters).param_groups
    assert callable(get_method(config.data.source._target_))


def test_the_paper_s_network_is_the_default_of_its_class(compose):
    network = OmegaConf.to_container(compose("train", ["scale=paper"]).network, resolve=True)
    ours, default = (build_network(description) for description in (network, {"kind": "LightUNet"}))
    assert str(ours) == str(default)


@pytest.mark.parametrize("scale", sorted(file.stem for file in (CONFIGS / "scale").glob("*.yaml")))
def test_a_network_of_any_kind_is_left_alone_by_every_scale(compose, scale, plug_in):
    plug_in("network/third.yaml", "kind: Third\nwidth: 7\n")
    config = compose("train", [f"scale={scale}", "network=third", plug_in.searchpath])
    assert OmegaConf.to_container(config.network) == {"kind": "Third", "width": 7}


@pytest.fixture
def plug_in(tmp_path):
    """``plug_in(name, text)`` writes a user's own config; ``plug_in.searchpath`` makes Hydra find it."""

    def write(name, text):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write.searchpath = f"hydra.searchpath=['file://{tmp_path}/mine']"
    return write


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "ssl_light"),
        (["experiment=sup_nnunet"], "sup_nnunet"),
        (["experiment=sup_light", "scale=tiny", "seed=3", "optimizer=adamw"], "sup_light"),
        (["method=supervised", "network=plain", "loss=dice_ce"], "supervised-plain-dice_ce"),
        (["experiment=ssl_light_as_published", "network=plain"], "cross_pseudo-plain-published"),
        (["loss=dice_ce", "name=mine"], "mine"),
        (["pseudo_loss=dice_ce"], "cross_pseudo-light-ga-dice_ce"),
        (["recipe=paper"], "cross_pseudo-light-nrd_tce-paper"),
        (["method=cross_teaching", "network@other_network=light"], "cross_teaching-light-ga-light"),
    ],
)
def test_a_run_is_named_by_what_it_is(compose, words, name):
    register_resolvers()
    config = compose("train", [*words, "hydra.mode=RUN"], return_hydra_config=True)
    assert config.name == name
    assert name in config.output


LOSSES = {
    "nrd_tce": "dlunet.losses.RobustSegmentationLoss",
    "ga": "dlunet.losses.GradientAwareLoss",
    "dice_ce": "dlunet.losses.DiceCrossEntropyLoss",
}


@pytest.mark.parametrize(
    ("words", "loss", "pseudo_loss", "decay"),
    [
        (["experiment=ssl_light", "scale=paper"], "nrd_tce", "nrd_tce", 0),
        (["experiment=sup_light", "scale=paper"], "nrd_tce", "nrd_tce", 0),
        (["experiment=ssl_nnunet", "scale=paper"], "nrd_tce", "nrd_tce", 0),
        (["experiment=ssl_light", "scale=tiny"], "nrd_tce", "nrd_tce", 0),
        (["experiment=ssl_light", "scale=cpu", "recipe=paper"], "nrd_tce", "nrd_tce", 0),
        (["experiment=ssl_light", "scale=demo"], "ga", "nrd_tce", 0.99),
        (["experiment=sup_nnunet", "scale=cpu"], "ga", "nrd_tce", 0.99),
        (["experiment=ssl_light", "scale=auto"], "ga", "nrd_tce", 0.99),
        (["experiment=ssl_light_best", "scale=paper"], "ga", "nrd_tce", 0.99),
        (["experiment=loss_dice_ce", "scale=cpu"], "dice_ce", "nrd_tce", 0.99),  # the row of table 4 is about its loss
        (["scale=cpu", "loss=dice_ce", "pseudo_loss=same"], "dice_ce", "dice_ce", 0.99),
        (["experiment=ssl_light", "scale=demo", "recipe=plain"], "dice_ce", "dice_ce", 0),
        (["experiment=sup_light", "scale=paper", "recipe=plain"], "dice_ce", "dice_ce", 0),
    ],
)
def test_scales_train_with_the_recipe_and_the_paper_with_its_own_losses(compose, words, loss, pseudo_loss, decay):
    config = compose("train", words)
    assert (config.loss._target_, config.pseudo_loss._target_) == (LOSSES[loss], LOSSES[pseudo_loss])
    assert config.method.decay == decay
    assert config.recipe.strong == (decay > 0)


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (["method=cross_pseudo", "recipe.unlabelled_weight=1", "recipe.decay=0", "recipe.strong=false"], []),
        (["experiment=sup_light", "recipe.decay=0"], []),
        (["experiment=sup_light", "recipe.strong=false"], ["recipe.strong=false"]),
        (["method=fixmatch", "recipe.unlabelled_weight=1"], ["recipe.unlabelled_weight=1"]),
        (["method.decay=0", "recipe.decay=0.9"], ["recipe.decay=0.9"]),
        (["scale=paper", "recipe.supervised_epochs=9"], []),
        (["scale=cpu", "recipe.supervised_epochs=9"], ["recipe.supervised_epochs=9"]),  # scales have their own
        (["recipe=paper"], []),
    ],
)
def test_settings_of_the_recipe_that_nothing_uses_are_found(compose, words, unused):
    assert unused_of_recipe(compose("train", words), words) == unused


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        ([], "cpu"),
        (["data=gap"], "cpu"),
        (["data=flare22", "data.root=x"], "paper"),
        (["experiment=sup_light", "data=folders", "-m"], "auto"),
        (["data=nnunet,flare22", "seed=1,2", "--multirun"], "auto"),
        (["data='msd'"], "auto"),  # quoted, as by some shells and scripts
        (["data=mine"], "paper"),
        (["data=plain"], "auto"),
        (["data=nonsense"], "auto"),
    ],
)
def test_a_dataset_says_which_scale_is_for_it_on_a_gpu(words, scale, plug_in, monkeypatch):
    plug_in("data/mine.yaml", "gpu_scale: paper\nroot: x\n")
    plug_in("data/plain.yaml", "root: x\n")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = [*words, plug_in.searchpath]
    chosen = with_default_scale("train", words)
    assert sorted(chosen) == sorted([*words, f"scale={scale}"])
    assert with_default_scale("train", [*words, "scale=cpu"]) == [*words, "scale=cpu"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert sorted(with_default_scale("train", words)) == sorted([*words, "scale=cpu"])


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


TINY = ("scale=tiny", "data=flare22", "data.root=flare22", "logger=csv", "data.workers=1")


def test_a_full_disk_ends_in_one_message_and_what_fits_is_kept(tiny_flare22, small_disk, tmp_path, dlunet_process):
    """Runs in new processes, which leave no file open on the disk."""
    tiny_flare22(tmp_path / "flare22")
    (small_disk / "ballast").write_bytes(bytes(120_000))
    printed = dlunet_process("prepare", *TINY, f"data.prepared={small_disk}/prepared", cwd=tmp_path, fails=True).all
    assert "could not be written" in printed and "free space" in printed
    assert list(small_disk.glob("prepared/*/*/[!.]*/case.json")) and not list(small_disk.glob("prepared/*/*/.unfin*"))
    (small_disk / "ballast").unlink()
    settings = (f"output={small_disk}/run", "network.features=[64,128,256]")
    assert "free space" in dlunet_process("train", *TINY, *settings, cwd=tmp_path, fails=True).all


@pytest.mark.slow
def test_on_a_full_disk_a_training_goes_on_if_it_is_to(tiny_flare22, small_disk, tmp_path, start_dlunet):
    """It is filled after a checkpoint, and has room again later: checkpoints and all metrics are there at the end."""
    tiny_flare22(tmp_path / "flare22")
    run, ballast = small_disk / "run", small_disk / "ballast"
    words = (f"output={run}", "experiment=sup_light", "checkpoint.on_full=continue", "trainer.max_epochs=30")
    three_checkpoints = ("mount", "-o", "remount,size=600k", str(small_disk))
    subprocess.run(three_checkpoints, check=True)
    printed = ""
    with start_dlunet("train", *TINY, *words, cwd=tmp_path, fresh=True) as process:
        while not (run / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        fill(ballast)
        for line in process.stdout:
            printed += line
            if "on_full=continue" in line and ballast.exists():
                assert "could not be written" in line
                ballast.unlink()
        errors = process.communicate()[1]
    assert process.returncode == 0 and "Traceback" not in printed + errors, printed + errors
    assert not ballast.exists()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 29
    steps = pd.read_csv(run / "metrics.csv").dropna(subset="train/loss")["step"]
    assert steps.tolist() == list(range(30 * 4))


def fill(path):
    """Take all room that is left."""
    with path.open("wb", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_an_output_that_cannot_be_made(tiny_root, tmp_path, dlunet):
    (tmp_path / "file").write_text("in the way")
    for verb, setting in (("train", "output=file/run"), ("prepare", "data.prepared=file/prepared")):
        printed = dlunet(verb, *TINY, f"data.root={tiny_root}", setting, cwd=tmp_path, fails=True).all
        assert "file/" in printed
