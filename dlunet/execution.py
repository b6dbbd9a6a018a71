"""The settings that say how a run is executed, not what it trains."""

from __future__ import annotations

from collections.abc import Iterable

#: Settings, or parts of a config. Of the callbacks, early stopping is not among them: it decides how long a run trains.
EXECUTION = (
    "callbacks.device_monitor",
    "callbacks.weight_norms",
    "checkpoint",
    "data.gpu_scale",
    "data.source.workers",
    "data.workers",
    "dry_run",
    "logger",
    "output",
    "resume",
    "sampling.num_workers",
    "strict",
    "test",
)


def is_among(key: str, names: Iterable[str]) -> bool:
    """Whether a setting, by dotted name, is one of those named or in a part of a config that is."""
    return f"{key}.".startswith(tuple(f"{name}." for name in names))
