"""A label set: which organ has which id, and how it is named, drawn and scored.

FLARE22's 13 abdominal organs are :data:`FLARE22`. The tolerances are those of FLARE22's official evaluation, in
millimetres; a tubular organ is scored only on the slices that its reference covers, because how far up or down
annotators followed it is arbitrary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Label:
    """One foreground class.

    Attributes:
        id: The voxel value in label maps, 1 or more.
        name: The organ's name.
        abbreviation: The short name used in tables.
        color: The colour in figures, ``#rrggbb``.
        nsd_tolerance_mm: Tolerance of the normalised surface dice, in mm.
        tubular: Whether only the z range of the reference is scored.
    """

    id: int
    name: str
    abbreviation: str
    color: str
    nsd_tolerance_mm: float
    tubular: bool = False


@dataclass(frozen=True)
class LabelSet:
    """The foreground classes of a dataset, ids 1 to N without gaps; 0 is background."""

    name: str
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        ids = [label.id for label in self.labels]
        if ids != list(range(1, len(ids) + 1)):
            raise ValueError(f"label set {self.name!r}: ids must be 1, 2, … without gaps, found {ids}")

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of network outputs: the foreground classes and the background."""
        return len(self.labels) + 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint."""
        return {"name": self.name, "labels": [asdict(label) for label in self.labels]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LabelSet:
        """The inverse of :meth:`to_dict`."""
        return cls(values["name"], tuple(Label(**label) for label in values["labels"]))


FLARE22 = LabelSet(
    "FLARE22",
    (
        Label(1, "Liver", "LV", "#c0504d", 5),
        Label(2, "Right kidney", "RK", "#4f9d4f", 3),
        Label(3, "Spleen", "SL", "#6a6fd0", 3),
        Label(4, "Pancreas", "PC", "#f2c84b", 5),
        Label(5, "Aorta", "AT", "#ff2d2d", 2, tubular=True),
        Label(6, "Inferior vena cava", "IVC", "#3fa7ff", 2, tubular=True),
        Label(7, "Right adrenal gland", "RAG", "#ff8c1a", 2),
        Label(8, "Left adrenal gland", "LAG", "#c77dff", 2),
        Label(9, "Gallbladder", "GB", "#2fbf71", 2),
        Label(10, "Esophagus", "EH", "#b58d5d", 3, tubular=True),
        Label(11, "Stomach", "SM", "#ff85b3", 5),
        Label(12, "Duodenum", "DD", "#00c2c7", 7),
        Label(13, "Left kidney", "LK", "#9acd32", 3),
    ),
)
