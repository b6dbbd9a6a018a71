"""Runs a study: trains and scores each of its runs with each seed, several at a time, and collects the scores.

    python experiments/recipes/study.py gap                                     # the runs in gap.yaml, with its seeds
    python experiments/recipes/study.py gap --runs floor-4 ssl-4 --seeds 0 1    # some of them
    python experiments/recipes/study.py gap --processes 4                       # at a time; default: one per core

Runs are in ``runs/recipes/STUDY/RUN-seedN``; rerun the command to resume. Of all finished runs, the scores are written
to ``results/STUDY.csv``; means, CPU minutes, after how many epochs the scored checkpoints were saved, and provenance to
``results/STUDY.json``; the paired comparisons that the study asks for to ``results/STUDY.md`` and
``results/STUDY_paired.csv``, with NSD instead of DSC to ``results/STUDY_nsd.md``. Runs whose folders are not here,
since they were trained elsewhere or deleted, keep the scores that they have in these files. A run that was trained with
other overrides than the study has now is refused; what else has changed since, the commits tell.

With ``command: self_train``, every round of a run has a row of its own. A run ``{same_as: gap/ssl-4}`` is that of
another study, and trained there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import median

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from dlunet.inference.case_tables import read_case_table
from dlunet.provenance import provenance
from dlunet.reporting import Run, read_run
from dlunet.reporting.paired import paired_table
from dlunet.reporting.tables import MEAN, organ_means, score_table
from dlunet.rounds import KEPT
from dlunet.run_layout import KeptLayout, RoundLayout, RunLayout, ScoresLayout, SelfTrainingLayout
from dlunet.training.metrics_file import values_by_epoch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
#: A line for each start of a run, and one with its CPU seconds.
CPU_SECONDS, START = "cpu_seconds.txt", "start"
#: The overrides that a run was started with, one per line.
SETTINGS = "settings.txt"


def main() -> None:
    """Run the study named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--runs", nargs="+", help="some of its runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="some of its seeds")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    study = load(arguments.study)
    for name, known in (("runs", study.runs), ("seeds", study.seeds)):
        if unknown := [value for value in getattr(arguments, name) or () if value not in known]:
            parser.error(f"--{name}: found {unknown[0]}; {arguments.study}.yaml has {', '.join(map(str, known))}")
    check_settings(arguments.study, study)
    wanted = list(product(arguments.runs or study.runs, arguments.seeds or study.seeds))
    if command_of(study) == "train":
        prepare_all(study, {run for run, _ in wanted})
    with ThreadPoolExecutor(arguments.processes) as threads:
        well = list(threads.map(lambda which: train(arguments.study, study, *which), wanted))
    if runs := finished_runs(arguments.study, study):
        write_scores(arguments.study, runs)
        write_summary(arguments.study, study, runs, provenance())
        write_comparisons(arguments.study, runs, study.comparisons)
    if not all(well):
        sys.exit(f"{well.count(False)} runs failed, see above; rerun the command to resume them")


def load(name: str) -> DictConfig:
    """A study by its name."""
    return OmegaConf.load(HERE / f"{name}.yaml")


def home(study, name: str, run: str) -> tuple[DictConfig, str, str]:
    """The study that a run is trained in, its name, and that of the run there."""
    if not (elsewhere := (study.runs[run] or {}).get("same_as")):
        return study, name, run
    name, run = elsewhere.split("/")
    return load(name), name, run


def command_of(study) -> str:
    """The command that trains the runs of a study: ``train`` or ``self_train``."""
    return study.get("command", "train")


def settings_of(study, run: str) -> list[str]:
    """The overrides of a run: its name, those of the study and its own."""
    settings = {"name": run, **study.settings, **(study.runs[run] or {})}
    return [f"{name}={value}" for name, value in settings.items()]


def trained_with(study, name: str, run: str) -> list[str]:
    """The overrides of a run, or those that it has in the study that it is trained in."""
    study, _, run = home(study, name, run)
    return settings_of(study, run)


def check_settings(name: str, study) -> None:
    """Exit if a run was trained with other overrides than the study has now: its scores would be those of another."""
    summary = collected_summary(name)
    for run in study.runs:
        now = trained_with(study, name, run)
        for place, before in recorded_settings(summary, name, study, run).items():
            if sorted(before) != sorted(now):
                sys.exit(
                    f"{place}: {run} was trained with {' '.join(before)}, but the study has {' '.join(now)}; to train "
                    "it again, delete its run folders and its entries in this file; or give the settings another name"
                )


def recorded_settings(summary: Mapping[str, dict], name: str, study, run: str) -> dict[str, list[str]]:
    """The overrides that a run was trained with, by the results and the run folders that record them."""
    _, trained_in, original = home(study, name, run)
    rows = [row for row in trainings(study, name, run, 0) if "settings" in summary.get(row, {})]
    recorded = {f"{RESULTS / name}.json, {row}": summary[row]["settings"] for row in rows}
    for seed in study.seeds:
        file = run_folder(trained_in, original, seed) / SETTINGS
        begun = any(RunLayout(part).last.exists() for part in trainings(study, name, run, seed).values())
        if begun and file.exists():
            recorded[str(file.parent)] = file.read_text().splitlines()
    return recorded


def prepare_all(study, runs: Iterable[str]) -> None:
    """Prepare each dataset of the runs once, before runs that share it start together."""
    only_data = {tuple(word for word in settings_of(study, run) if word.startswith(("data", "scale="))) for run in runs}
    for words in sorted(only_data):
        subprocess.run([sys.executable, "-m", "dlunet", "prepare", *words], cwd=ROOT, check=True)


def run_folder(name: str, run: str, seed: int) -> Path:
    """The folder of a run of a study."""
    return ROOT / "runs" / "recipes" / name / f"{run}-seed{seed}"


def trainings(study, name: str, run: str, seed: int) -> dict[str, Path]:
    """The run folders of a run of a study, by the names of their rows: its own, or one for each round."""
    study, name, original = home(study, name, run)
    folder = run_folder(name, original, seed)
    if command_of(study) == "train":
        return {run: folder}
    layout = SelfTrainingLayout(folder)
    rounds = [layout.teacher, *(layout.round(number).student for number in range(1, study.settings.rounds + 1))]
    return {f"{run}, round {number}": folder for number, folder in enumerate(rounds)}


def is_finished(folder: Path) -> bool:
    """Whether the training in a run folder was scored."""
    return ScoresLayout(RunLayout(folder).scores).table.exists()


def train(name: str, study, run: str, seed: int) -> bool:
    """Train and score one run, or resume it; returns whether it went well."""
    parts = trainings(study, name, run, seed)
    study, name, run = home(study, name, run)
    folder = run_folder(name, run, seed)
    if not all(map(is_finished, parts.values())):
        settings = settings_of(study, run)
        words = [*settings, f"seed={seed}", f"output={folder}"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SETTINGS).write_text("\n".join(settings) + "\n")
        with (folder / "output.txt").open("a") as output, (folder / CPU_SECONDS).open("a") as seconds:
            print(START, file=seconds, flush=True)  # stays alone if this process is killed
            process = subprocess.Popen(
                [sys.executable, "-m", "dlunet", command_of(study), *words, "logger=csv", "test=true", "resume=auto"],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            _, status, usage = os.wait4(process.pid, 0)  # with what its own processes used
            print(usage.ru_utime + usage.ru_stime, file=seconds)
        if status:
            print(f"{run}, seed {seed}: failed, see {folder / 'output.txt'}", flush=True)
            return False
    for row, part in parts.items():
        print(f"{row}, seed {seed}: DSC {organ_means(read_run(part).scores, 'dsc')[MEAN]:.4f}", flush=True)
    return True


def finished_runs(name: str, study) -> dict[str, list[Run]]:
    """All finished runs of a study by the names of their rows, in its order, also those of earlier commands."""
    runs: dict[str, list[Run]] = {}
    elsewhere = collected_scores(name)
    for run, seed in product(study.runs, study.seeds):
        for row, folder in trainings(study, name, run, seed).items():
            if is_finished(folder):
                runs.setdefault(row, []).append(read_run(folder))
            elif (row, seed) in elsewhere:
                runs.setdefault(row, []).append(run_elsewhere(folder, seed, elsewhere[row, seed]))
    return runs


def collected_scores(name: str) -> dict[tuple[str, int], pd.DataFrame]:
    """The scores in the results of a study, by row and seed, of the rows of which the summary says what they are."""
    path, summary = RESULTS / f"{name}.csv", collected_summary(name)
    if not path.exists():
        return {}
    groups = pd.read_csv(path, dtype={"case": str}).groupby(["run", "seed"])
    return {(row, seed): scores[["case", "organ", "dsc", "nsd"]] for (row, seed), scores in groups if row in summary}


def run_elsewhere(folder: Path, seed: int, scores: pd.DataFrame) -> Run:
    """A run of which only the scores are here."""
    return Run(folder, OmegaConf.create({"seed": seed}), pd.DataFrame(), {}, scores, {}, {})


def collected_summary(name: str) -> dict[str, dict]:
    """What the results of a study say of each row."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["dsc"] if path.exists() else {}


def cpu_minutes(folder: Path) -> float | None:
    """CPU time of training and scoring a run; None for one that was interrupted, or trained without this script."""
    try:
        start, seconds = (folder / CPU_SECONDS).read_text().split()
    except (OSError, ValueError):
        return None
    return float(seconds) / 60 if start == START else None


def checkpoint_epochs(folder: Path) -> int | None:
    """The epochs of the checkpoint that was scored, that with the best validation DSC; None for a run elsewhere."""
    dsc = values_by_epoch(folder, "val/dsc")
    return max(dsc, key=dsc.__getitem__) + 1 if dsc else None


def kept_cases(folder: Path) -> int | None:
    """How many pseudo-labels a round of self-training has kept for its student; None for other runs."""
    table = KeptLayout(RoundLayout(folder.parent).kept).table
    return sum(row["kept"] == KEPT for row in read_case_table(table).values()) if table.exists() else None


def write_scores(name: str, runs: Mapping[str, Sequence[Run]]) -> None:
    """Write the scores of all cases."""
    tables = [run.scores.assign(run=group, seed=run.seed) for group, members in runs.items() for run in members]
    columns = ["run", "seed", "case", "organ", "dsc", "nsd"]
    pd.concat(tables)[columns].round(4).to_csv(RESULTS / f"{name}.csv", index=False)


def write_summary(name: str, study, runs: Mapping[str, Sequence[Run]], made: Mapping[str, object]) -> None:
    """Write means by run, seed and organ, and the provenance; what only folders tell is kept for runs elsewhere."""
    summary, table, earlier = {}, score_table(runs, "dsc").mean, collected_summary(name)
    settings = {row: trained_with(study, name, run) for run in study.runs for row in trainings(study, name, run, 0)}
    for group, members in runs.items():
        before = earlier.get(group, {})
        here = [run for run in members if run.provenance]
        commits = {run.commit for run in here}
        minutes = [spent for run in members if (spent := cpu_minutes(run.folder)) is not None]
        summary[group] = {
            "seeds": {run.seed: round(organ_means(run.scores, "dsc")[MEAN], 4) for run in members},
            "mean": table.loc[group, MEAN].round(4),
            "organs": table.loc[group].drop(MEAN).round(4).to_dict(),
            "cpu_minutes": round(median(minutes), 1) if minutes else before.get("cpu_minutes"),
            "commits": sorted(commits.union(before.get("commits", ()) if len(here) < len(members) else ())),
        }
        if overrides := settings[group] if here else before.get("settings"):
            summary[group]["settings"] = overrides
        for part, count in (("checkpoint_epochs", checkpoint_epochs), ("kept", kept_cases)):
            counts = {run.seed: number for run in members if (number := count(run.folder)) is not None}
            if counts := before.get(part, {}) | counts:
                summary[group][part] = counts
    (RESULTS / f"{name}.json").write_text(json.dumps({"dsc": summary, "provenance": made}, indent=2) + "\n")


def write_comparisons(name: str, runs: Mapping[str, Sequence[Run]], comparisons) -> None:
    """Write the paired comparisons of a study: some runs each, with a floor and, if there is one, a ceiling."""
    compared = []
    for comparison in comparisons:
        floor, ceiling = comparison.floor, comparison.get("ceiling")
        groups = {group: runs[group] for group in comparison.get("runs", runs) if group in runs}
        if {floor, ceiling or floor} <= groups.keys():
            compared.append((groups, floor, ceiling))
    if not compared:
        return
    tables = {score: [paired_table(*each, score) for each in compared] for score in ("dsc", "nsd")}
    for score, file in (("dsc", f"{name}.md"), ("nsd", f"{name}_nsd.md")):
        (RESULTS / file).write_text("\n".join(table.as_markdown() for table in tables[score]))
    rows = [table.as_csv_table().assign(floor=table.floor, ceiling=table.ceiling) for table in tables["dsc"]]
    pd.concat(rows).to_csv(RESULTS / f"{name}_paired.csv", index=False)


if __name__ == "__main__":
    main()
