"""Group training runs by experiment: the runs of a group differ only in their seed; and what all groups share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from omegaconf import OmegaConf

from dlunet.errors import UserError
from dlunet.evaluation import Metric
from dlunet.evaluation.metrics import ALWAYS
from dlunet.execution import EXECUTION, is_among
from dlunet.labels import Label, LabelSet
from dlunet.reporting.runs import Groups, Run
from dlunet.settings import flattened

#: Settings, or parts of a config, that only name a run, say where files are, or how it is executed. The number of
#: devices is not among them: each adds its patches to a step.
NOT_COMPARED = (
    *EXECUTION,
    *("name", "recipe", "scale", "seed", "unet_sizes"),
    *("data.name", "data.prepared", "data.root", "data.source.root"),
    *("trainer.accelerator", "trainer.log_every_n_steps"),
)

#: Paths, of which only matters whether there is one.
PATHS = ("data.pseudo_labels", "data.source.splits", "data.source.unlabelled", "data.splits", "data.unlabelled")

ABSENT = "–"

Settings = Mapping[str, str]


def group_by_experiment(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in their seed by experiment, supervised before semi-supervised ones.

    A group has the experiment's name. If runs of that name differ in data, scale or other settings, these are added to
    the name; if even their seeds are equal, each run is its own group, named with its folder. As in the paper, the
    baseline, nnU-Net's network, comes before the light one.
    """

    def place(run: Run) -> tuple[bool, bool, str, str]:
        method, network, *_ = run.parts
        return method != "Supervised", network != "PlainUNet", run.name, run.seed.zfill(9)

    settings = {run.folder: _settings(run) for run in runs}
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=place):
        groups.setdefault(_group_name(run, runs, settings), []).append(run)
    return groups


def common_labels(groups: Groups) -> LabelSet:
    """The label set common to all runs.

    Raises:
        UserError: The runs have different classes.
    """
    first, *others = [run for runs in groups.values() for run in runs]
    for run in others:
        if run.labels.labels != first.labels.labels:
            found, expected = _differing(run.labels, first.labels)
            raise UserError(
                f"{run.folder}: its classes ({found}) differ from those of {first.folder} ({expected}); expected runs "
                "with the same classes; report them separately"
            )
    return first.labels


def common_metrics(groups: Groups) -> dict[str, Metric]:
    """The metrics of all runs, DSC and NSD first."""
    runs = [run for runs in groups.values() for run in runs]
    return {**ALWAYS, **{name: metric for run in runs for name, metric in run.score_metrics.items()}}


def _differing(*sets: LabelSet) -> tuple[str, ...]:
    """In what each of two label sets differs from the other: its names or, if these are the same, one attribute."""
    names = tuple(", ".join(label.name for label in labels) for labels in sets)
    if len(set(names)) > 1:
        return names
    labels = next(pair for pair in zip(*sets, strict=True) if pair[0] != pair[1])
    attribute = next(field.name for field in fields(Label) if len({getattr(label, field.name) for label in labels}) > 1)
    return tuple(f"{label.name}: {attribute} {getattr(label, attribute)}" for label in labels)


def _group_name(run: Run, runs: Sequence[Run], settings: Mapping[Path, Settings]) -> str:
    namesakes = [other for other in runs if other.name == run.name]
    alike = [other for other in namesakes if (other.data, other.scale) == (run.data, run.scale)]
    keys = _telling_apart([settings[other.folder] for other in alike])
    values = _of(keys, settings[run.folder])
    seeds = [other.seed for other in alike if _of(keys, settings[other.folder]) == values]
    if len(set(seeds)) < len(seeds):
        return f"{run.name} ({run.folder})"
    words = [run.data, run.scale] if len(alike) < len(namesakes) else []
    words += [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
    return f"{run.name} ({', '.join(words)})" if words else run.name


def _settings(run: Run) -> Settings:
    """What determines the training of a run, besides its seed."""
    found = flattened(OmegaConf.to_container(run.config))
    return {
        key: "…" if key in PATHS and isinstance(value, str) else str(value)
        for key, value in found.items()
        if value is not None and not is_among(key, NOT_COMPARED)  # what is null is absent, as in earlier versions
    }


def _telling_apart(runs: Sequence[Settings]) -> list[str]:
    """A few settings that tell runs apart as well as all do."""
    keys = set().union(*runs)
    values = {key: len({settings.get(key, ABSENT) for settings in runs}) for key in keys}
    chosen: list[str] = []
    for key in sorted(keys, key=lambda key: (-values[key], key)):
        if values[key] > 1 and _count([*chosen, key], runs) > _count(chosen, runs):
            chosen.append(key)
    return chosen


def _count(keys: Iterable[str], runs: Sequence[Settings]) -> int:
    return len({_of(keys, settings) for settings in runs})


def _of(keys: Iterable[str], settings: Settings) -> tuple[str, ...]:
    return tuple(settings.get(key, ABSENT) for key in keys)
