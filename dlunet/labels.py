"""A label set: which organ has which id, and how it is named, drawn and scored.

FLARE22's 13 abdominal organs are :data:`FLARE22`; :func:`label_set` makes one of any other names. The tolerances are
those of FLARE22's official evaluation, in millimetres; a tubular organ is scored only on the slices that its reference
covers, because how far up or down annotators followed it is arbitrary.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Label:
    """One foreground class.

    Attributes:
        id: The voxel value in label maps, 1 or more.
        name: The organ's name.
        abbreviation: The short name used in tables.
        color: The colour in figures, ``#rrggbb``.
        nsd_tolerance_mm: Tolerance of the normalised surface dice, in mm; None if nobody has stated one.
        tubular: Whether only the z range of the reference is scored.
    """

    id: int
    name: str
    abbreviation: str
    color: str
    nsd_tolerance_mm: float | None
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
        names = [label.name for label in self.labels]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"label set {self.name!r}: the name {repeated[0]!r} is used more than once")

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


def label_set(name: str, names: Mapping[int, str]) -> LabelSet:
    """A label set from the names that a dataset gives its labels.

    An organ of FLARE22, in whatever spelling (``kidney_right``), keeps the colour, the abbreviation and the tolerance
    that it has there. That only a part of the tubular organs is scored is a rule of FLARE22's own, and stays there.

    Args:
        name: The dataset's name.
        names: Names by id; the background, 0, is left out.

    Raises:
        ValueError: The ids have gaps, or two labels share a name.
    """
    known = {words_of(label.name): label for label in FLARE22}
    labels: list[Label] = []
    for number, (id_, organ) in enumerate(sorted(names.items())):
        match = known.get(words_of(organ))
        if match is None:
            label = Label(id_, organ, _abbreviation(organ), _color(number), None)
        else:
            label = replace(match, id=id_, name=organ, tubular=False)
        taken = {other.abbreviation for other in labels}
        if label.abbreviation in taken:
            label = replace(label, abbreviation=f"{label.abbreviation}{id_}")
        labels.append(label)
    return LabelSet(name, tuple(labels))


def words_of(name: str) -> frozenset[str]:
    """A name without its case, its separators and the order of its words."""
    return frozenset(name.lower().replace("_", " ").replace("-", " ").split())


def _abbreviation(name: str) -> str:
    """The initials of several words, the first three letters of one."""
    words = name.replace("_", " ").replace("-", " ").split()
    return ("".join(word[0] for word in words) if len(words) > 1 else name[:3]).upper()


def _color(number: int) -> str:
    """Hues a golden section of the circle apart: however many there are, neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.65, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
