"""Case-specific variation, drawn in advance so that a case can be described before it is painted.

The two profiles mirror FLARE22: ``labelled`` cases come from few scanners, mostly in the portal venous phase, with
pancreatic disease; ``varied`` cases come from many, in every phase, with other diseases, poses and fields of view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dlunet.phantom.solids import turned

Profile = Literal["labelled", "varied"]

#: Contrast phases, in the order of the tables below.
PHASES = ("non-contrast", "arterial", "portal venous", "late")

#: Probability of each finding by profile: (labelled, varied).
FINDINGS: dict[str, tuple[float, float]] = {
    "pancreas tumour": (0.5, 0.08),
    "pancreas cyst": (0.15, 0.05),
    "liver cysts": (0.1, 0.25),
    "liver tumours": (0.05, 0.25),
    "fatty liver": (0.05, 0.15),
    "kidney cysts": (0.1, 0.3),
    "kidney tumour": (0.0, 0.12),
    "spleen lesions": (0.0, 0.1),
    "large spleen": (0.0, 0.1),
    "ascites": (0.0, 0.15),
    "pleural effusion": (0.0, 0.15),
    "no gallbladder": (0.0, 0.1),
    "gallstones": (0.05, 0.12),
    "wide aorta": (0.0, 0.06),
    "calcified aorta": (0.25, 0.4),
    "oral contrast": (0.05, 0.2),
}


@dataclass(frozen=True)
class Variation:
    """The variation of one case. Vectors are (x, y, z), lengths in mm, unless stated otherwise.

    Attributes:
        spacing: Voxel size (z, y, x).
        direction: Directions of the voxel axes in the room, 3×3, columns x, y, z.
        orientation: Axis letters of the stored file.
        view_center: Centre of the field of view in the room.
        pose: Rotation of the patient in the room, 3×3.
        size: Scale factors of the patient relative to the template.
        bend: Standard deviation of the smooth deformation.
        fat: Thickness of the subcutaneous fat at the side.
        organ_spread: Standard deviation of each organ's shift and, in percent, of its size.
        phase: One of :data:`PHASES`.
        noise: Standard deviation of the noise in HU.
        findings: Findings of the case, out of :data:`FINDINGS`.
    """

    spacing: tuple[float, float, float]
    direction: np.ndarray
    orientation: str
    view_center: np.ndarray
    pose: np.ndarray
    size: np.ndarray
    bend: float
    fat: float
    organ_spread: float
    phase: str
    noise: float
    findings: frozenset[str]


def draw_variation(rng: np.random.Generator, profile: Profile, shape: tuple[int, int, int]) -> Variation:
    """Draw the variation of a case for a grid of ``shape`` voxels (z, y, x)."""
    varied = profile == "varied"
    column = 1 if varied else 0
    size = rng.normal(1.0, 0.05 if varied else 0.03) * np.clip(rng.normal((1.0, 1.06, 1.0), 0.035), 0.92, 1.14)
    fat = float(rng.uniform(6, 36) if varied else rng.uniform(11, 28))
    width = 2 * (TORSO_HALF_WIDTH + fat) * size[0] + 12
    margin = rng.uniform(0.94, 1.25) if varied else rng.uniform(1.02, 1.15)
    in_plane = float(max(rng.uniform(310, 350), width * margin))
    height = float(rng.uniform(205, 310) if varied else rng.uniform(240, 280))
    tilt = 3.5 if varied else 1.5
    return Variation(
        spacing=(round(height / shape[0], 3), round(in_plane / shape[1], 3), round(in_plane / shape[2], 3)),
        direction=_draw_direction(rng, varied),
        orientation=str(rng.choice(["LPS", "RAS", "LAS", "RPS", "LPI"], p=_ORIENTATION_SHARES[column])),
        view_center=np.array([rng.normal(0, 5), rng.normal(0, 5), 14 + rng.normal(0, 24 if varied else 8)]),
        pose=turned(*np.clip(rng.normal(0, 1, 3) * (tilt, tilt, tilt * 1.6), -3 * tilt, 3 * tilt)),
        size=size,
        bend=float(rng.uniform(3.0, 5.0) if varied else rng.uniform(2.5, 4.2)),
        fat=fat,
        organ_spread=4.5 if varied else 3.0,
        phase=str(rng.choice(PHASES, p=(0.25, 0.2, 0.4, 0.15) if varied else (0.0, 0.1, 0.8, 0.1))),
        noise=float(rng.uniform(8, 28) if varied else rng.uniform(8, 15)),
        findings=frozenset(name for name, odds in FINDINGS.items() if rng.random() < odds[column]),
    )


#: Half-width of the template's torso at the outer surface of its muscles, in mm.
TORSO_HALF_WIDTH = 142.0

_ORIENTATION_SHARES = ((0.7, 0.15, 0.15, 0.0, 0.0), (0.45, 0.2, 0.15, 0.1, 0.1))


def _draw_direction(rng: np.random.Generator, varied: bool) -> np.ndarray:
    """The room's axes or, for some cases, axes oblique to them by up to ten degrees."""
    oblique = rng.random() < (0.15 if varied else 0.05)
    angles = rng.uniform(-1, 1, 3)
    return turned(*(angles * 10 / np.linalg.norm(angles))) if oblique else np.eye(3)
