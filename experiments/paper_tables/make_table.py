"""Trains, scores and writes a table of the paper, from nothing; rerun the command to resume.

    python experiments/paper_tables/make_table.py 3 seed=0,1,2
    python experiments/paper_tables/make_table.py 3 seed=0,1,2 data=flare22 data.root=FLARE22

Takes the settings of ``train``, also Hydra's for several GPUs or a cluster. All tables train in one folder,
``sweeps/tables-DATA-SCALE``, so that runs that they share are trained once; table N is written to ``tableN`` in it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from dlunet.configs import compose
from dlunet.errors import UserError
from dlunet.evaluation import evaluate_folder
from dlunet.inference import Predictor, load_engine, predict_files
from dlunet.reporting import Run, read_report
from dlunet.reporting.paper import FLIPS, paper_table
from dlunet.run_layout import RunLayout, ScoresLayout

ROOT = Path(__file__).parents[2]

#: The experiments of each table.
EXPERIMENTS = {
    3: ("sup_nnunet", "ssl_nnunet", "sup_light", "ssl_light"),
    4: ("loss_dice_ce", "loss_nrd_tce"),
    5: ("ssl_light",),
    6: ("sup_light", "ssl_light"),
    7: ("ssl_light",),
}
#: Experiments that may be the same with some settings; the first one is trained.
SAME = {"loss_nrd_tce": "sup_nnunet"}
#: What a setting says of a run, not of what is trained.
OF_A_RUN = ("logger", "name", "output", "seed")


def main() -> None:
    """Make the table named on the command line."""
    number, *settings = sys.argv[1:] or [""]
    if not number.isdecimal() or int(number) not in EXPERIMENTS:
        sys.exit(f"found {number or 'nothing'}; expected the number of a table, from 3 to 7\n\n{__doc__}")
    try:
        print(make_table(int(number), settings))
    except UserError as error:
        sys.exit(str(error))


def make_table(number: int, settings: Sequence[str]) -> Path:
    """Train what is missing and write a table; returns its folder."""
    config = compose("train", [word for word in settings if not word.startswith(("seed=", "hydra"))])
    sweep = ROOT / "sweeps" / f"tables-{config.data.name}-{config.scale.name}"
    experiments = f"experiment={','.join(trained(number, settings))}"
    dlunet("train", "-m", experiments, *settings, "test=true", "resume=auto", f"hydra.sweep.dir={sweep}")
    if number == 5:
        for scored in paper_table(number, read_report([sweep]).groups).rows[0].runs:
            predict_with_flips(scored)
    output = sweep / f"table{number}"
    dlunet("report", f"runs={sweep}", f"table={number}", f"output={output}")
    return output


def trained(number: int, settings: Sequence[str]) -> list[str]:
    """The experiments to train for a table: one that is the same as another table's takes its place."""
    fixed = [word for word in settings if not word.startswith(("seed=", "hydra"))]
    return [
        SAME[name] if name in SAME and contents(name, fixed) == contents(SAME[name], fixed) else name
        for name in EXPERIMENTS[number]
    ]


def contents(experiment: str, settings: Sequence[str]) -> dict:
    """What an experiment trains."""
    config = OmegaConf.to_container(compose("train", [f"experiment={experiment}", *settings]), resolve=True)
    assert isinstance(config, dict)
    return {key: value for key, value in config.items() if key not in OF_A_RUN}


def predict_with_flips(run: Run) -> None:
    """Predict and score the test cases of a run with flips, unless that was done."""
    folder = RunLayout(run.folder / FLIPS["DLUNet+tta"])
    if ScoresLayout(folder.scores).table.exists():
        return
    bundle, engine = load_engine(RunLayout(run.folder).best)
    cases = [case for case in run.cases.values() if case.label is not None]
    predict_files(Predictor(bundle, engine=engine, flips="axes"), [case.image for case in cases], folder.predictions)
    references = {case.name: case.label for case in cases if case.label is not None}
    evaluate_folder(folder.predictions, references, folder.scores, bundle.labels)


def dlunet(*words: str) -> None:
    """Run a ``dlunet`` command; its failure ends this one."""
    status = subprocess.run([sys.executable, "-m", "dlunet", *words], cwd=ROOT).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
