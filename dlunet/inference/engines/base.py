"""What an engine is, and the registry of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from dlunet.networks import Bundle


class EngineUnavailable(Exception):
    """The engine cannot be used on this machine; the message says why."""


class Engine(ABC):
    """Runs a trained network on tiles.

    Attributes:
        devices: Where it can run, as ``device=`` names it.
        precisions: What it can compute in.
        packages: What must be installed besides PyTorch.
        extra: DLUNet's extra that installs them.
        formats: The formats of ``dlunet export`` that it opens.
        auto_rank: By device, its place in the order in which ``engine=auto`` tries engines; without one, it runs only
            where it is asked for.
        name: What it is and where it runs, such as ``openvino on cpu, float32``.
        device: Where it takes tiles from and leaves logits, as PyTorch names it.
        tiles_at_once: The largest number of tiles that it takes.
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
        """What it computes in unless told otherwise."""
        return "float32"

    @classmethod
    @abstractmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> Engine:
        """The engine of a bundle's network, which :meth:`why_not` has let pass.

        Raises:
            EngineUnavailable: It cannot be used on this machine.
        """

    @classmethod
    def from_export(cls, model: Path, device: str, precision: str) -> Engine:
        """The engine of a model file in one of its :attr:`formats`."""
        raise NotImplementedError

    @abstractmethod
    def __call__(self, tiles: Tensor) -> Tensor:
        """Map tiles (n, 1, z, y, x) to logits (n, C, z, y, x), which the next call may overwrite."""


#: The engines by the names that ``engine=`` takes.
ENGINES: dict[str, type[Engine]] = {}

AnyEngine = TypeVar("AnyEngine", bound=type[Engine])


def register_engine(name: str) -> Callable[[AnyEngine], AnyEngine]:
    """A decorator: ``engine=NAME`` runs networks with this class."""

    def register(engine: AnyEngine) -> AnyEngine:
        ENGINES[name] = engine
        return engine

    return register
