"""Group training runs by experiment: the runs of a group differ only in their seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from dlunet.execution import EXECUTION, is_among
from dlunet.reporting.runs import Run
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
