"""Generate one synthetic CT: draw its case-specific variation, paint it, add noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dlunet.phantom.canvas import Canvas
from dlunet.phantom.intensity import add_noise, draw_tissues, smooth_field
from dlunet.phantom.organs import AbdomenPainter
from dlunet.phantom.torso import paint_torso
from dlunet.phantom.variation import Profile, Variation, draw_variation

#: The range of a scanner's 12-bit values.
HU_RANGE = (-1024, 3071)

#: Knot spacing of the smooth fields in mm: for the deformation of the patient, for coarse and fine bumps of organ
#: surfaces, and for texture.
_BEND_GRAIN, _COARSE_GRAIN, _FINE_GRAIN, _TEXTURE_GRAIN = 75.0, 30.0, 12.0, 7.0


@dataclass(frozen=True)
class Phantom:
    """A synthetic CT with its label map, in canonical orientation (z superior, y posterior, x to the patient's left).

    Attributes:
        image: HU, int16, (z, y, x).
        labels: FLARE22 ids, uint8, (z, y, x).
        spacing: Voxel size (z, y, x) in mm.
        direction: Row-major 3×3 matrix whose columns are the directions of the x, y, z axes (LPS); the identity unless
            the scan is oblique.
        orientation: Axis letters of the stored file, such as ``RAS``.
        phase: Contrast phase.
        findings: Findings of the patient, such as ``gallstones``.
    """

    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    direction: tuple[float, ...] = tuple(np.eye(3).ravel())
    orientation: str = "LPS"
    phase: str = "portal venous"
    findings: tuple[str, ...] = field(default=())


def make_phantom(
    seed: int | np.random.Generator, profile: Profile = "labelled", shape: tuple[int, int, int] = (64, 128, 128)
) -> Phantom:
    """Generate one case.

    The field of view has about the same size in millimetres for every shape: fewer voxels are larger voxels.

    Args:
        seed: Number or generator that determines the case completely.
        profile: ``labelled`` for the narrower variation of FLARE22's labelled cases, ``varied`` for the rest.
        shape: Voxels (z, y, x).

    Raises:
        ValueError: The profile is unknown.
    """
    if profile not in ("labelled", "varied"):
        raise ValueError(f"profile: found {profile!r}; expected 'labelled' or 'varied'")
    rng = np.random.default_rng(seed)
    variation = draw_variation(rng, profile, shape)
    grid = (shape, variation.spacing)
    x, y, z = _template_coordinates(rng, variation, shape)
    tissues = draw_tissues(rng, variation.phase)
    surface = [smooth_field(rng, *grid, grain) for grain in (_COARSE_GRAIN,) * 2 + (_FINE_GRAIN,) * 2]
    grain = smooth_field(rng, *grid, _TEXTURE_GRAIN)
    canvas = Canvas(x, y, z, blur=float(np.mean(variation.spacing)), background=tissues["air"])
    torso = paint_torso(canvas, rng, tissues, grain, variation.fat, variation.findings)
    AbdomenPainter(canvas, torso, rng, variation, tissues, surface, grain).paint()
    in_body = canvas.cover(torso.wall - np.float32(variation.fat), width=10)
    noisy = add_noise(rng, canvas.hu, torso.axis_distance, variation.noise, in_body)
    return Phantom(
        image=np.clip(np.rint(noisy), *HU_RANGE).astype(np.int16),
        labels=canvas.labels,
        spacing=variation.spacing,
        direction=tuple(float(value) for value in variation.direction.ravel()),
        orientation=variation.orientation,
        phase=variation.phase,
        findings=tuple(sorted(variation.findings)),
    )


def _template_coordinates(
    rng: np.random.Generator, variation: Variation, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Template coordinates of each voxel (z, y, x): x, y and z in mm, float32.

    From voxel to room to patient to template; the last step includes a smooth random deformation, which changes every
    shape but preserves the relations between organs.
    """
    to_patient = np.diag(1 / variation.size) @ variation.pose.T
    matrix = to_patient @ variation.direction
    offset = to_patient @ variation.view_center
    spacing_x_first = variation.spacing[::-1]
    steps = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape[::-1], spacing_x_first, strict=True)]
    along_x, along_y, along_z = steps[0][None, None, :], steps[1][None, :, None], steps[2][:, None, None]
    coordinates = []
    for row, start in zip(matrix, offset, strict=True):
        straight = (row[0] * along_x + row[1] * along_y + row[2] * along_z + start).astype(np.float32)
        bend = smooth_field(rng, shape, variation.spacing, _BEND_GRAIN)
        coordinates.append(straight + np.float32(variation.bend) * bend)
    return coordinates[0], coordinates[1], coordinates[2]
