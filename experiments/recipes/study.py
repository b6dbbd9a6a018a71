"""Runs a study: trains and scores each of its runs with each seed, several at a time, and collects the scores.

    python experiments/recipes/study.py gap                 # the runs in gap.yaml, with its seeds
    python experiments/recipes/study.py gap --seeds 0 1     # some of them
    python experiments/recipes/study.py gap --processes 4   # at a time; default: one per core

Runs are in ``runs/recipes/STUDY/RUN-seedN``; rerun the command to resume. The scores of all test cases are written to
``results/STUDY.csv``, the means and the provenance to ``results/STUDY.json``. ``dlunet report runs=runs/recipes/STUDY
floor=RUN ceiling=RUN`` compares the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf

from dlunet.provenance import provenance
from dlunet.run_layout import RunLayout

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    """Run the study named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    study = OmegaConf.load(HERE / f"{arguments.study}.yaml")
    prepare_all(study)
    wanted = list(product(arguments.seeds or study.seeds, study.runs))  # all runs of a seed before the next seed
    with ThreadPoolExecutor(arguments.processes) as threads:
        scores = list(threads.map(lambda which: train(arguments.study, study, *which), wanted))
    write_results(arguments.study, pd.concat(scores, ignore_index=True))


def settings_of(study, run: str) -> list[str]:
    """The overrides of a run: those of the study and its own."""
    return [f"{name}={value}" for name, value in {**study.settings, **(study.runs[run] or {})}.items()]


def prepare_all(study) -> None:
    """Prepare each dataset once, before runs that share it start together."""
    only_data = {
        tuple(word for word in settings_of(study, run) if word.startswith(("data", "scale="))) for run in study.runs
    }
    for words in sorted(only_data):
        subprocess.run([sys.executable, "-m", "dlunet", "prepare", *words], cwd=ROOT, check=True)


def train(name: str, study, seed: int, run: str) -> pd.DataFrame:
    """Train and score one run, or resume it; returns the scores of its test cases."""
    folder = ROOT / "runs" / "recipes" / name / f"{run}-seed{seed}"
    scores = RunLayout(folder).scores / "scores.csv"
    started = time.monotonic()
    if not scores.exists():
        words = [*settings_of(study, run), f"name={run}", f"seed={seed}", f"output={folder}"]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "output.txt").open("w") as output:
            subprocess.run(
                [sys.executable, "train.py", *words, "logger=csv", "test=true", "resume=auto"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
            )
    found = pd.read_csv(scores)
    means = found.groupby("organ")["dsc"].mean()
    print(f"{run}, seed {seed}: DSC {means.mean():.4f}, {time.monotonic() - started:.0f} s", flush=True)
    return found.assign(run=run, seed=seed)


def write_results(name: str, scores: pd.DataFrame) -> None:
    """Write the scores of all cases, and their means by run and organ."""
    made = provenance()  # first: the new files would count as changes of the tree
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    scores[["run", "seed", "case", "organ", "dsc", "nsd"]].round(4).to_csv(results / f"{name}.csv", index=False)
    by_organ = scores.groupby(["run", "organ"], sort=False)["dsc"].mean().unstack(sort=False)
    by_seed = scores.groupby(["run", "seed", "organ"], sort=False)["dsc"].mean().groupby(["run", "seed"]).mean()
    summary = {
        run: {
            "seeds": {str(seed): round(value, 4) for seed, value in by_seed[run].items()},
            "mean": round(organs.mean(), 4),
            **organs.round(4).to_dict(),
        }
        for run, organs in by_organ.iterrows()
    }
    (results / f"{name}.json").write_text(json.dumps({"dsc": summary, "provenance": made}, indent=2) + "\n")


if __name__ == "__main__":
    main()
