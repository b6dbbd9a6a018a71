"""Splits what the runs of a study gain by the contrast phase of the test case.

    python -m experiments.recipes.phases gap

Of each comparison, the differences to the floor are averaged over the test cases of a phase, and the cases that are
better are counted. Writes ``results/STUDY_phases.json``, with the phases of the labelled, validation and test cases.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from dlunet.configs import compose
from dlunet.datasets import Case, dataset_of
from dlunet.phantom import phase_of
from dlunet.provenance import provenance
from experiments.recipes import study as recipes


def main() -> None:
    """Split the study named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(path.stem for path in recipes.HERE.glob("*.yaml")))
    name = parser.parse_args().study
    study = recipes.load(name)
    scores = pd.read_csv(recipes.RESULTS / f"{name}.csv")
    found = []
    for comparison in study.comparisons:
        dataset = dataset_of(compose("train", recipes.trained_with(study, name, comparison.floor)))
        phases = {case.name: phase_of(case.image) for case in dataset.test}
        runs = [run for run in comparison.get("runs", study.runs) if run in set(scores["run"])]
        found.append(
            {
                "floor": comparison.floor,
                "labelled": count_phases(dataset.labelled),
                "validation": count_phases(dataset.validation),
                "test": count_phases(dataset.test),
                "differences": {run: by_phase(scores, run, comparison.floor, phases) for run in runs},
            }
        )
    result = {"comparisons": found, "provenance": provenance()}
    (recipes.RESULTS / f"{name}_phases.json").write_text(json.dumps(result, indent=2) + "\n")


def count_phases(cases: Sequence[Case]) -> dict[str, int]:
    """How many cases have each phase."""
    return dict(Counter(str(phase_of(case.image)) for case in cases))


def by_phase(scores: pd.DataFrame, run: str, floor: str, phases: dict[str, str | None]) -> dict[str, dict[str, float]]:
    """The mean difference in DSC of a run to its floor over the cases of each phase, and how many cases are better.

    Args:
        scores: The scores of a study; of both runs, the seeds that they share count.
        run: The run.
        floor: Its floor.
        phases: The phase of each case.
    """
    means = {name: of_run.groupby(["seed", "case"])["dsc"].mean() for name, of_run in scores.groupby("run")}
    differences = (means[run] - means[floor]).dropna().groupby("case").mean()
    groups = differences.groupby(lambda case: phases[case])
    return {
        phase: {"difference": round(float(of_phase.mean()), 4), "better": int((of_phase > 0).sum())}
        for phase, of_phase in groups
    }


if __name__ == "__main__":
    main()
