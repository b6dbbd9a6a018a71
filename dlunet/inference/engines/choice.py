"""Chooses the engine for a checkpoint or an export: the requested one, or the fastest usable one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from dlunet.errors import UserError, in_one_line
from dlunet.inference.engines.base import ENGINES, Engine, EngineUnavailable
from dlunet.inference.export import Export, read_export
from dlunet.networks import Bundle, load_bundle

logger = logging.getLogger(__name__)


def load_engine(
    checkpoint: Path | str, engine: str = "auto", device: str = "auto", precision: str = "auto"
) -> tuple[Bundle, Engine]:
    """Load a checkpoint or an exported folder into an engine.

    Args:
        checkpoint: A checkpoint, a .safetensors file, or a folder that ``dlunet export`` wrote.
        engine: A name in :data:`ENGINES`; ``auto``: torch on a GPU, else the fastest usable engine.
        device: ``cpu``, ``cuda``, or ``tensorrt`` (ONNX Runtime); ``auto``: the GPU if there is one.
        precision: Precision of the network's arithmetic. ``auto``: float16 on a GPU, else float32.

    Raises:
        UserError: The checkpoint cannot be used, or the engine is not installed or does not support the request.
    """
    checkpoint = Path(checkpoint)
    _check_known("engine", engine, ENGINES)
    _check_known("device", device, _all("devices"))
    _check_known("precision", precision, _all("precisions"))
    chosen = device != "auto"
    if not chosen:
        device = "cuda" if torch.cuda.is_available() and engine in ("auto", "torch") else "cpu"
    if not checkpoint.is_dir():
        bundle = load_bundle(checkpoint)
        return bundle, make_engine(bundle, engine, device, precision)
    export = read_export(checkpoint)
    if export.bundle.network is not None:
        return export.bundle, make_engine(export.bundle, engine, device, precision)
    devices = [device] if chosen else list(dict.fromkeys((device, "cpu")))
    return export.bundle, _open_export(checkpoint, export, engine, devices, precision)


def make_engine(bundle: Bundle, engine: str = "auto", device: str = "cpu", precision: str = "auto") -> Engine:
    """Load a bundle's network into an engine; see :func:`load_engine`."""
    assert bundle.network is not None
    names = _by_rank(device) if engine == "auto" else [engine]

    def make(kind: type[Engine], device: str, precision: str) -> Engine:
        return kind.from_bundle(bundle, device, precision)

    return _first_usable([(name, device) for name in names], precision, make, list(ENGINES), bundle.network)


def _open_export(folder: Path, export: Export, engine: str, devices: Sequence[str], precision: str) -> Engine:
    suitable = [name for name, kind in ENGINES.items() if export.format in kind.formats]
    if engine not in ("auto", *suitable):
        raise UserError(
            f"engine={engine}: {folder} was exported as {export.format}; expected engine={' or '.join(suitable)}, or "
            "the checkpoint itself"
        )
    names = suitable if engine == "auto" else [engine]
    ranked = [(name, device) for device in devices for name in _by_rank(device) if name in names]

    def make(kind: type[Engine], device: str, precision: str) -> Engine:
        return kind.from_export(export.model, device, precision)

    return _first_usable(ranked or [(name, device) for name in names for device in devices], precision, make, suitable)


def _first_usable(
    choices: Sequence[tuple[str, str]],
    precision: str,
    make: Callable[[type[Engine], str, str], Engine],
    possible: Sequence[str],
    network: nn.Module | None = None,
) -> Engine:
    """The first of these engines, each on a device, that supports the request.

    Args:
        choices: The engines, by name, and devices.
        precision: The requested precision.
        make: Makes an engine.
        possible: The engines that open the checkpoint or export, for advice.
        network: The network, if it is known.

    Raises:
        UserError: None does; the message says why.
    """
    obstacles = []
    for name, device in choices:
        kind = ENGINES[name]
        obstacle = _obstacle(name, device, precision, possible, network)
        if obstacle is None:
            try:
                return make(kind, device, kind.default_precision(device) if precision == "auto" else precision)
            except EngineUnavailable as error:
                reason = str(error)
            except (ImportError, OSError, RuntimeError) as error:  # an installation or a GPU that does not work
                reason = f"does not work here ({type(error).__name__}: {in_one_line(error)})"
            obstacle = _named(name, reason, possible)
            if (name, device) != choices[-1]:
                logger.warning("warning: engine=%s cannot be used: %s", name, reason)
        obstacles.append(obstacle)
    raise UserError("; ".join(obstacles))


def _check_known(setting: str, value: str, known: Iterable[str]) -> None:
    if value not in ("auto", *known):
        raise UserError(f"{setting}: found {value}; expected one of {', '.join(('auto', *known))}")


def _all(attribute: str) -> list[str]:
    """All values of an attribute over all engines."""
    return list(dict.fromkeys(value for kind in ENGINES.values() for value in getattr(kind, attribute)))


def _by_rank(device: str) -> list[str]:
    """The engines that ``engine=auto`` tries on a device, in order."""
    ranked = [name for name, kind in ENGINES.items() if device in kind.auto_rank]
    return sorted(ranked, key=lambda name: ENGINES[name].auto_rank[device])


def _obstacle(
    name: str, device: str, precision: str, possible: Sequence[str], network: nn.Module | None = None
) -> str | None:
    """Why an engine does not support the request; None if it does, as far as is known without loading it."""
    kind = ENGINES[name]
    for setting, value in (("device", device), ("precision", precision)):
        known = getattr(kind, f"{setting}s")
        if value not in ("auto", *known):
            others = [other for other in possible if value in getattr(ENGINES[other], f"{setting}s")]
            expected = f"one of {', '.join(known)}" if len(known) > 1 else known[0]
            instead = f"engine={' or '.join(others)}" if others else "the checkpoint itself"
            return f"engine={name}: found {setting}={value}; expected {expected}, or {instead}"
    for package in kind.packages:
        if find_spec(package) is None:
            what = f"'dlunet[{kind.extra}]'" if kind.extra else package
            return f"engine={name}: {package} is not installed; pip install {what}"
    reason = None if network is None else kind.why_not(network)
    return reason and _named(name, reason, possible)


def _named(name: str, reason: str, possible: Sequence[str]) -> str:
    advice = "; engine=torch runs every checkpoint" if name != "torch" and "torch" in possible else ""
    return f"engine={name}: {reason}{advice}"
