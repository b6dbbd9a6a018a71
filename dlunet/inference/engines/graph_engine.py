"""What engines have in common that run a network written as an ONNX graph."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Self

from torch import nn

from dlunet.inference.engines.base import Engine
from dlunet.inference.graphs import graph_of, why_no_graph
from dlunet.networks import Bundle


class GraphEngine(Engine):
    """Runs a graph: that of a bundle's network, or an exported file.

    Args:
        model: The graph, or its file.
        device: One of its :attr:`devices`.
        precision: One of its :attr:`precisions`.
    """

    @abstractmethod
    def __init__(self, model: bytes | Path, device: str, precision: str) -> None: ...

    @classmethod
    def why_not(cls, network: nn.Module) -> str | None:
        """It runs networks that can be written as a graph."""
        return why_no_graph(network)

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str, precision: str) -> Self:
        """The bundle's network as a graph."""
        return cls(graph_of(bundle), device, precision)

    @classmethod
    def from_export(cls, model: Path, device: str, precision: str) -> Self:
        """A file in one of its :attr:`formats`."""
        return cls(model, device, precision)
