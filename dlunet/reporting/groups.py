"""Group training runs by experiment: the runs of a group differ only in their seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from omegaconf import OmegaConf

from dlunet.reporting.runs import Run
from dlunet.settings import flattened

#: The parts of a config that determine what a run trains, and on what.
COMPARED = ("agreement", "augmentation", "data", "loss", "method", "network", "optimizer", "plan", "pseudo_loss",
            "sampling", "trainer")  # fmt: skip

#: Settings in these parts that only say where files are, and how a run is executed.
NOT_COMPARED = ("data.gpu_scale", "data.name", "data.prepared", "data.root", "data.source.root", "data.source.workers",
                "data.workers", "sampling.num_workers", "trainer.accelerator", "trainer.log_every_n_steps")  # fmt: skip

Settings = Mapping[str, str]


def group_by_experiment(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs that differ only in their seed by experiment, supervised before semi-supervised ones.

    A group has the experiment's name. If runs of that name differ in data, scale or other settings, these are added to
    the name; if even their seeds are equal, each run is its own group, named with its folder. As in the paper, the
    baseline, nnU-Net's network, comes before the light one.
    """

    def place(run: Run) -> tuple[bool, bool, str, str]:
        method, network, _ = run.parts
        return method != "Supervised", network != "PlainUNet", run.name, run.seed.zfill(9)

    ordered = sorted(runs, key=place)
    groups: dict[str, list[Run]] = {}
    for run in ordered:
        groups.setdefault(_group_name(run, runs), []).append(run)
    return groups


def _group_name(run: Run, runs: Sequence[Run]) -> str:
    namesakes = [other for other in runs if other.name == run.name]
    alike = [other for other in namesakes if (other.data, other.scale) == (run.data, run.scale)]
    settings, of_others = _settings(run), [_settings(other) for other in alike]
    keys = _telling_apart(of_others)
    same = [
        other.seed for other, found in zip(alike, of_others, strict=True) if _of(keys, found) == _of(keys, settings)
    ]
    if len(set(same)) < len(same):
        return f"{run.name} ({run.folder})"
    words = [run.data, run.scale] if len(alike) < len(namesakes) else []
    words += [f"{key}={settings[key]}" for key in keys]
    return f"{run.name} ({', '.join(words)})" if words else run.name


def _settings(run: Run) -> Settings:
    """What determines the training of a run, besides its seed. Pseudo-labels may be anywhere, but not absent."""
    found = flattened(OmegaConf.to_container(run.config))
    compared = {key: str(value) for key, value in found.items() if key.split(".")[0] in COMPARED}
    if compared.get("data.pseudo_labels", "None") != "None":
        compared["data.pseudo_labels"] = "…"
    return {key: value for key, value in compared.items() if key not in NOT_COMPARED}


def _telling_apart(runs: Sequence[Settings]) -> list[str]:
    """A few settings that tell runs apart as well as all do; one that a run does not have, as an older one, is none."""
    shared = set.intersection(*(set(settings) for settings in runs))
    differing = {key: len({settings[key] for settings in runs}) for key in shared}
    chosen: list[str] = []
    for key in sorted(shared, key=lambda key: (-differing[key], key)):
        if _count([*chosen, key], runs) > _count(chosen, runs):
            chosen.append(key)
    return chosen


def _count(keys: Iterable[str], runs: Sequence[Settings]) -> int:
    return len({_of(keys, settings) for settings in runs})


def _of(keys: Iterable[str], settings: Settings) -> tuple[str, ...]:
    return tuple(settings[key] for key in keys)
