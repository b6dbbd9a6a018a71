"""Trains, scores and writes a table of the paper, from nothing; rerun the command to resume.

    python experiments/paper_tables/make_table.py 3 seed=0,1,2
    python experiments/paper_tables/make_table.py 3 seed=0,1,2 data=flare22 data.root=FLARE22

Takes settings of ``train``, also Hydra's for several GPUs or a cluster. All tables with the same settings train in one
folder, ``sweeps/tables-DATA-SCALE``, so that runs that they share are trained once; table N is written to ``tableN`` in
it. With other settings than data and scale, these are part of the folder's name.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from dlunet.configs import FOR_FOLDERS, compose
from dlunet.errors import UserError
from dlunet.evaluation import evaluate_folder
from dlunet.execution import EXECUTION
from dlunet.inference import Predictor, load_engine, predict_files
from dlunet.reporting import Run, read_run
from dlunet.reporting.paper import FLIPS, TITLES, paper_table
from dlunet.run_layout import RunLayout
from dlunet.settings import check_config
from dlunet.training import RunFolder

ROOT = Path(__file__).parents[2]

#: Experiments that may be the same with some settings; the second one is trained.
SAME = {"loss_nrd_tce": "sup_nnunet", "loss_dice_ce": "sup_nnunet"}
#: What a setting says of a run, not of what is trained.
OF_A_RUN = ("logger", "name", "output", "seed")
#: How settings begin that do not tell a table's folder from that of another one: those of ``tables-DATA-SCALE``, and
#: those that say how a run is executed. Pseudo-labels come from table 4's teacher, whose folder the other tables share.
NOT_TOLD = (
    *EXECUTION,
    *("data=", "data.prepared=", "data.pseudo_labels=", "data.root=", "scale="),
    *("hydra", "launcher=", "trainer.accelerator="),
)
#: Settings that a table makes itself.
OWN = ("experiment=", "name=", "output=", "resume=", "test=", "+sweep=", "hydra.sweep", "hydra.run")


def main() -> None:
    """Make the table named on the command line."""
    number, *settings = sys.argv[1:] or [""]
    if not number.isdecimal() or int(number) not in TITLES:
        sys.exit(f"found {number or 'nothing'}; expected the number of a table, from 3 to 7\n\n{__doc__}")
    try:
        print(make_table(int(number), settings))
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; rerun the command to resume")


def make_table(number: int, settings: Sequence[str]) -> Path:
    """Train what is missing and write a table; returns its folder.

    Raises:
        UserError: A setting is missing, unknown or not for a table, or a run cannot be predicted or scored.
    """
    seeds, fixed = split(settings)
    config = compose("train", [word for word in fixed if not word.startswith("hydra")])
    check_config(config)
    experiments = trained(number, fixed)
    sweep = ROOT / "sweeps" / "-".join(["tables", config.data.name, config.scale.name, *told(fixed)])
    choice = "${hydra:runtime.choices.experiment}"
    made_here = ("test=true", "resume=auto", f"name={choice}", f"hydra.sweep.subdir={choice}_seed${{seed}}")
    words = (f"experiment={','.join(experiments)}", f"seed={','.join(seeds)}", *fixed, *made_here)
    dlunet("train", "-m", *words, f"hydra.sweep.dir={sweep}")
    runs = [sweep / f"{experiment}_seed{seed}" for experiment in experiments for seed in seeds]
    if number == 5:
        for run in runs:
            predict_with_flips(read_run(run), config.data.workers)
    output = sweep / f"table{number}"
    dlunet("report", f"runs=[{','.join(map(str, runs))}]", f"table={number}", f"output={output}")
    return output


def split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The seeds, and all other settings."""
    for word in settings:
        if "=" not in word or word.startswith(("-", *OWN)):
            raise UserError(f"found {word}; expected a setting of `dlunet train` that the table does not make itself")
    given = [word.removeprefix("seed=") for word in settings if word.startswith("seed=")]
    seeds = given[-1].split(",") if given else ["0"]
    if not all(map(str.isdecimal, seeds)):
        raise UserError(f"seed: found {','.join(seeds)}; expected whole numbers, such as seed=0,1,2")
    return list(dict.fromkeys(seeds)), [word for word in settings if not word.startswith("seed=")]


def told(settings: Sequence[str]) -> list[str]:
    """The settings that tell the folder from that of other tables, as parts of its name."""
    return [word.replace("=", "").translate(FOR_FOLDERS) for word in sorted(settings) if not word.startswith(NOT_TOLD)]


def trained(number: int, settings: Sequence[str]) -> list[str]:
    """The experiments to train for a table: one that is the same as another table's takes its place."""
    fixed = [word for word in settings if not word.startswith("hydra")]
    return [
        SAME[name] if name in SAME and contents(name, fixed) == contents(SAME[name], fixed) else name
        for name in paper_table(number, {}).experiments
    ]


def contents(experiment: str, settings: Sequence[str]) -> dict:
    """What an experiment trains."""
    config = OmegaConf.to_container(compose("train", [f"experiment={experiment}", *settings]), resolve=True)
    assert isinstance(config, dict)
    return {key: value for key, value in config.items() if key not in OF_A_RUN}


def predict_with_flips(run: Run, workers: int | None) -> None:
    """Predict and score the test cases of a run with flips, as far as that is not done with its checkpoint."""
    folder = RunLayout(run.folder / FLIPS["DLUNet+tta"])
    bundle, engine = load_engine(RunFolder(run.folder).trained)
    references = {case.name: case.label for case in run.cases.values() if case.label is not None}
    images = [run.cases[name].image for name in references]
    predict_files(Predictor(bundle, engine=engine, flips="axes"), images, folder.predictions, replace=True)
    evaluate_folder(folder.predictions, references, folder.scores, bundle.labels, workers=workers)


def dlunet(*words: str) -> None:
    """Run a ``dlunet`` command; its failure ends this one."""
    status = subprocess.run([sys.executable, "-m", "dlunet", *words], cwd=ROOT).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
