"""Label sets: the id, name, colour and scoring rules of each class.

:data:`FLARE22` contains FLARE22's 13 abdominal organs; :func:`label_set` builds a label set from any other names. The
tolerances are those of FLARE22's official evaluation, in millimetres; a tubular organ is scored only on the slices
covered by its reference, because how far annotators followed it up or down is arbitrary.
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
        name: The name of the class.
        abbreviation: The short name used in tables.
        color: The colour in figures, ``#rrggbb``.
        nsd_tolerance_mm: Tolerance of the normalised surface dice, in mm; None if none is defined.
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
        """Number of network outputs: the foreground classes plus the background."""
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
    """Build a label set from a dataset's class names.

    A FLARE22 organ in any spelling (``kidney_right``) keeps its FLARE22 colour, abbreviation and tolerance. Scoring
    tubular organs on part of their slices is FLARE22's own rule and does not apply here.

    Args:
        name: The dataset's name.
        names: Class names by id, without the background, 0.

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
    """The words of a name, ignoring case, separators and order."""
    return frozenset(name.lower().replace("_", " ").replace("-", " ").split())


def _abbreviation(name: str) -> str:
    """The initials of several words, or the first three letters of a single word."""
    words = name.replace("_", " ").replace("-", " ").split()
    return ("".join(word[0] for word in words) if len(words) > 1 else name[:3]).upper()


def _color(number: int) -> str:
    """A colour whose hue advances by the golden ratio, so that consecutive colours differ for any number of classes."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.65, 0.9)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
