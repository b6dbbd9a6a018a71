"""The engine interface and the registry of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from dlunet.networks import Bundle
from dlunet.plugins import is_another


class EngineUnavailable(Exception):
    """The engine cannot be used on this machine; the message says why."""


class Engine(ABC):
    """Runs a trained network on tiles.

    Attributes:
        devices: Supported devices, as named by ``device=``.
        precisions: Supported precisions.
        packages: Packages required besides PyTorch.
        extra: DLUNet's extra that installs them.
        formats: The formats of ``dlunet export`` that it opens.
        auto_rank: By device, its position in the order in which ``engine=auto`` tries engines; without one, it runs
            only when requested.
        name: Engine, device and precision, such as ``openvino on cpu, float32``.
        device: The PyTorch device of its input tiles and output logits.
        tiles_at_once: The largest number of tiles per call.
    """

    devices: ClassVar[Sequence[str]] = ("cpu",)
    precisions: ClassVar[Sequence[str]] = ("float32",)
    packages: ClassVar[Sequence[str]] = ()
    extra: ClassVar[str] = ""
    formats: ClassVar[Sequence[str]] = ()
    auto_rank: ClassVar[Mapping[str, int]] = {}

    name: str
    device: str = "cpu"
    tiles_at_once: int = 1

    @classmethod
    def why_not(cls, network: nn.Module) -> str | None:
        """Why it cannot run a network; None if it can."""
        return None

    @classmethod
    def default_precision(cls, device: str) -> str:
        """The precision for ``precision=auto``."""
        return "float32"

    @classmethod
    @abstractmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> Engine:
        """The engine for a bundle's network, which :meth:`why_not` has accepted.

        Raises:
            EngineUnavailable: It cannot be used on this machine.
        """

    @classmethod
    def from_export(cls, model: Path, device: str, precision: str) -> Engine:
        """The engine for a model file in one of its :attr:`formats`."""
        raise NotImplementedError

    @abstractmethod
    def __call__(self, tiles: Tensor) -> Tensor:
        """Map tiles (n, 1, z, y, x) to logits (n, C, z, y, x), which the next call may overwrite."""


#: The engines by the names that ``engine=`` accepts.
ENGINES: dict[str, type[Engine]] = {}

AnyEngine = TypeVar("AnyEngine", bound=type[Engine])


def register_engine(name: str) -> Callable[[AnyEngine], AnyEngine]:
    """A decorator: ``engine=NAME`` runs networks with this class."""

    def register(engine: AnyEngine) -> AnyEngine:
        known = ENGINES.setdefault(name, engine)
        if is_another(known, engine):
            raise ValueError(f"an engine {name} is already registered by {known.__module__}; choose another name")
        return engine

    return register
