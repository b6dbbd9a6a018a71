"""The runs of a sweep: what each trains, how it is named, and what all have in common."""

from itertools import product
from pathlib import Path

import pytest
import yaml
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf

from dlunet import pipelines
from dlunet.configs import CONFIGS, compose
from dlunet.settings import check_settings
from experiments.recipes import study as studies

#: All but the one that needs pseudo-labels of an earlier network.
METHODS = sorted({path.stem for path in (CONFIGS / "method").glob("*.yaml")} - {"pseudo_label"})
#: By the loss for labels: the losses for labels and for pseudo-labels.
LOSSES = {"dice_ce": ("dice_ce", "dice_ce"), "ga": ("ga", "nrd_tce")}
#: The parts of a config that every run of a sweep over methods and losses has in common.
COMMON = ("data", "scale", "network", "plan", "sampling", "trainer", "optimizer", "augmentation", "test")


ROOT = Path(__file__).parents[1]
#: A sweep of Weights & Biases.
WANDB_SWEEP = ROOT / "experiments" / "wandb_sweep.yaml"


@pytest.fixture(scope="module")
def runs_of_methods():
    """The configs of the sweep over methods, filled by the first test that composes it: this takes long."""
    return []


@pytest.fixture
def methods_sweep(composed, runs_of_methods):
    """The configs of the sweep over methods on the benchmark, at a scale whose own recipe is another one."""
    if not runs_of_methods:
        runs_of_methods += composed("+sweep=methods", "data=gap", "scale=demo")
    return runs_of_methods


@pytest.fixture
def composed(dlunet, tmp_path, monkeypatch):
    """``composed(setting, …)`` returns the configs that ``train -m`` would train with.

    Hydra composes them all once more before the first run, for its message if one cannot be composed; here it does not.
    """
    monkeypatch.setattr(Sweeper, "validate_batch_is_legal", lambda *_: None)

    def run(*words):
        configs = []
        monkeypatch.setattr(pipelines, "train", lambda config: configs.append(resolved(config)))
        dlunet("train", "-m", *words, cwd=tmp_path)
        return configs

    return run


def resolved(config):
    return OmegaConf.to_container(config, resolve=True)


def test_the_methods_differ_in_method_and_losses_alone(methods_sweep):
    runs = methods_sweep
    assert len({run["output"] for run in runs}) == len(runs) == len(METHODS) * len(LOSSES)
    by_name = {run["name"]: run for run in runs}
    for method, loss in product(METHODS, LOSSES):
        names = [f"{part}={name}" for part, name in zip(("loss", "pseudo_loss"), LOSSES[loss], strict=True)]
        alone = resolved(compose("train", [f"method={method}", *names, "scale=demo", "recipe=paper"]))
        run = by_name[f"{method}-light-{loss}"]
        assert all(run[part] == alone[part] for part in ("method", "loss", "pseudo_loss"))
        assert all(run[part] == runs[0][part] for part in COMMON)
    assert runs[0]["test"] and runs[0]["data"]["name"] == "gap4" and runs[0]["scale"]["name"] == "demo"
    published = {"unlabelled_weight": 0.8, "decay": 0.0, "strong": False, "supervised_epochs": 8}
    ours = by_name["cross_pseudo-light-ga"]["method"]
    assert {name: ours[name] for name in published} == published


@pytest.mark.parametrize("experiment", ["with_dice_ce", "with_ga_nrd_tce"])
def test_methods_begin_with_labels_alone_at_the_papers_scale_as_well(compose, experiment):
    """As in the measured table: BCP's authors train like that, and the recipe does."""
    for method in ("bcp", "dhc", "fixmatch"):
        assert (
            compose("train", [f"method={method}", f"experiment={experiment}", "scale=paper"]).method.supervised_epochs
            == 160
        )
    assert compose("train", ["experiment=ssl_light", "scale=paper"]).method.supervised_epochs == 0


def test_the_study_of_methods_trains_the_runs_of_the_sweep(methods_sweep):
    study = OmegaConf.load(studies.HERE / "methods.yaml")
    runs = [resolved(compose("train", studies.settings_of(study, run))) for run in study.runs]
    by_name = {run["name"]: run for run in runs if run["data"]["name"] == "gap4"}
    for run in methods_sweep:
        same = by_name.pop(run["name"].replace("-light", ""))
        assert all(run[part] == same[part] for part in (*COMMON[:-1], "method", "loss", "pseudo_loss"))
    assert list(by_name) == ["recipe"]


@pytest.mark.parametrize(
    ("words", "folders"),
    [
        (["experiment=sup_light", "seed=0"], {"sup_light_seed0"}),
        (["seed=0,1", "scale=tiny", "experiment=sup_light"], {"sup_light_seed0", "sup_light_seed1"}),
        (["trainer.max_epochs=7,8", "data=gap", "seed=1"], {"seed1_trainer.max_epochs7", "seed1_trainer.max_epochs8"}),
        (["data.root=some/where,else"], {"data.rootsome_where", "data.rootelse"}),
        (["data=gap"], {"run"}),
        # As a message advises for a resumed run: it has to find its folders.
        (["seed=0", "sampling.num_workers=0", "strict=true", "callback=device_monitor", "resume=auto"], {"seed0"}),
        (["network.features=[8,16],[4,8]"], {"network.features[8-16]", "network.features[4-8]"}),
    ],
)
def test_the_folder_of_a_run_is_named_after_its_settings(composed, words, folders):
    """Without a number, and whatever their order: a sweep with more seeds finds the runs that it has."""
    runs = composed("hydra.sweep.dir=here", *words)
    assert {Path(run["output"]).name for run in runs} == folders
    assert {Path(run["output"]).parent.name for run in runs} == {"here"}


def test_the_sweep_of_weights_and_biases_composes_and_its_runs_have_folders_of_their_own(monkeypatch):
    """Its command line is put together by the code of `wandb agent`."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(WANDB_SWEEP.read_text())
    assert (ROOT / sweep["program"]).is_file() and sweep["metric"] == {"name": "val/dsc", "goal": "maximize"}
    choices = [part.get("values", [part.get("value")]) for part in sweep["parameters"].values()]
    outputs = set()
    for number, chosen in enumerate(product(*choices)):
        monkeypatch.setenv("WANDB_RUN_ID", f"run{number}")
        arguments = {name: {"value": value} for name, value in zip(sweep["parameters"], chosen, strict=True)}
        words = create_sweep_command_args({"args": arguments})["args_no_hyphens"]
        assert sweep["command"][:4] == ["${env}", "${interpreter}", "${program}", "${args_no_hyphens}"]
        config = compose("train", [*words, *create_sweep_command(sweep["command"][4:])])
        check_settings(config)
        assert "WandbLogger" in config.logger._target_ and config.logger.offline is False
        assert (config.optimizer.algorithm.lr, config.seed) == (
            arguments["optimizer.algorithm.lr"]["value"],
            arguments["seed"]["value"],
        )
        outputs.add(config.output)
    assert len(outputs) == number + 1 == 18
