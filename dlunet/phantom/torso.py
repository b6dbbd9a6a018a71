"""Paint the torso around the organs: skin, fat, muscles, spine, ribs, lungs and diaphragm.

Template space is in millimetres, x to the patient's left, y to posterior, z to superior; the origin is in front of the
first lumbar vertebra, at the height of the pancreas.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dlunet.phantom.canvas import Canvas, Region
from dlunet.phantom.solids import blob, clip, join, tube, turned
from dlunet.phantom.variation import TORSO_HALF_WIDTH

#: Half-depth of the torso (anterior to posterior) at the outer surface of its muscles, in mm.
_HALF_DEPTH = 93.0

#: Height of one vertebra with its disc, and of the disc alone, in mm.
_VERTEBRA, _DISC = 35.0, 9.0

#: Distance between ribs, measured upwards along the wall, in mm.
_RIB_STEP = 27.0


@dataclass(frozen=True)
class Torso:
    """The space the organs are fitted into. All arrays are (z, y, x), float32, with distances in mm.

    Attributes:
        wall: Signed distance to the outer surface of the muscles.
        cavity: Signed distance to the inner surface of the wall, negative inside.
        diaphragm: Signed distance to the underside of the diaphragm, negative below.
        axis_distance: Distance from the long axis of the torso.
    """

    wall: np.ndarray
    cavity: np.ndarray
    diaphragm: np.ndarray
    axis_distance: np.ndarray

    def abdomen(self, where: Region) -> np.ndarray:
        """Signed distance to the space below the diaphragm and inside the wall."""
        return np.maximum(self.cavity[where], self.diaphragm[where])


def spine_front(z: float | np.ndarray) -> np.ndarray:
    """y of the front of the vertebral bodies at height z: lordosis below, kyphosis above."""
    return 5.0 + 15.0 * ((np.asarray(z) + 50.0) / 150.0) ** 2


def paint_torso(
    canvas: Canvas,
    rng: np.random.Generator,
    tissues: dict[str, float],
    grain: np.ndarray,
    fat: float,
    findings: frozenset[str],
) -> Torso:
    """Paint everything that is not an abdominal organ.

    Args:
        canvas: The canvas, still empty.
        rng: Random generator for the case's dimensions.
        tissues: Mean HU by tissue.
        grain: Fine smooth field (z, y, x) of unit variance, the texture of fat and muscle.
        fat: Thickness of the subcutaneous fat at the side in mm.
        findings: The case's findings.
    """
    x, y, z = canvas.x, canvas.y, canvas.z
    radius = np.sqrt(x**2 + y**2) + np.float32(1e-3)
    wall, extent = _wall_distance(x, y, z, radius)
    back, side = y / radius, np.abs(x) / radius
    muscle = _wall_thickness(x, z, back, rng.uniform(0.85, 1.15))
    cavity = wall + muscle
    everywhere = canvas.everywhere
    fat_hu = np.float32(tissues["fat"]) + 6 * grain

    outside = wall - np.float32(fat) * (0.45 + 0.5 * side**2 + 0.35 * np.maximum(back, 0) + 0.12 * np.maximum(-back, 0))
    _paint_table(canvas, tissues)
    canvas.paint(everywhere, outside, tissues["skin"])
    canvas.paint(everywhere, outside + np.float32(2.2), fat_hu)
    canvas.paint(everywhere, wall, np.float32(tissues["muscle"]) + 7 * grain)
    canvas.paint(everywhere, cavity, fat_hu + 4)

    diaphragm = _diaphragm_distance(x, y, z, extent, rng)
    torso = Torso(wall, cavity, diaphragm, radius)
    _paint_chest(canvas, torso, rng, tissues, findings)
    _paint_back_muscles(canvas, rng, tissues, grain)
    _paint_spine(canvas, rng, tissues, grain)
    _paint_ribs(canvas, torso, rng, tissues)
    _paint_hip_bones(canvas, tissues)
    if "ascites" in findings:
        return _paint_ascites(canvas, torso, rng, tissues, grain)
    return torso


def _wall_distance(x: np.ndarray, y: np.ndarray, z: np.ndarray, radius: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to the outer surface of the muscles along the ray from the axis, and relative radius (1: on it)."""
    # The chest narrows a little upwards; the back is flatter than the belly.
    half_width = TORSO_HALF_WIDTH * (1 - 0.05 * np.clip(z / 120, -1, 1.5) ** 2)
    half_depth = np.where(y > 0, np.float32(_HALF_DEPTH - 3), np.float32(_HALF_DEPTH + 3))
    power = np.float32(2.2)
    extent = ((np.abs(x) / half_width) ** power + (np.abs(y) / half_depth) ** power) ** (1 / power)
    extent = np.maximum(extent, np.float32(1e-3))
    return radius * (1 - 1 / extent), extent


def _wall_thickness(x: np.ndarray, z: np.ndarray, back: np.ndarray, build: float) -> np.ndarray:
    """Thickness of the muscular wall in mm: flank muscles, the rectus muscles in front, the linea alba between."""
    in_front = _smoothstep((-back - 0.55) / 0.3)
    flank = (12.0 + 4 * _smoothstep((0.4 - np.abs(back + 0.1)) / 0.4)) * build * (1 - in_front)
    straight = 9.5 * build * np.clip(1.15 - (np.abs(np.abs(x) - 34) / 34) ** 2, 0.28, 1) * in_front
    chest = _smoothstep((z - 20 - 45 * in_front) / 40)
    return (flank + straight) * (1 - chest) + 13.0 * chest


def _diaphragm_distance(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, extent: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Signed distance to two domes that descend towards the wall, furthest at the back; negative below."""
    right, left = rng.normal(105, 6), rng.normal(97, 6)
    to_right = 1 / (1 + np.exp(np.clip(x / 22, -30, 30)))
    top = right * to_right + left * (1 - to_right) - 9 * np.exp(-(((x - 4) / 26) ** 2))
    out = np.minimum(extent, 1.25)
    dome = np.float32(20.0)
    drop = 54 + 34 * y / _HALF_DEPTH + 4 * np.abs(x) / TORSO_HALF_WIDTH
    squared = out * out
    steep = drop * squared * squared * squared
    height = top - dome * squared - steep * out
    slope = (2 * dome * out + 7 * steep) / np.float32(105)
    return (z - height) / np.sqrt(1 + slope**2)


def _paint_chest(
    canvas: Canvas, torso: Torso, rng: np.random.Generator, tissues: dict[str, float], findings: frozenset[str]
) -> None:
    """Lungs above the diaphragm, heart and vessels between them, and pleural effusion if the case has it."""
    where = canvas.region(np.array([-170, -120, 15]), np.array([170, 120, 260]))
    x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
    if x.size == 0:
        return
    canvas.paint(where, np.maximum(torso.cavity[where], -torso.diaphragm[where] - 1), tissues["muscle"])
    between = np.abs(x - 3 + 4 * np.sin(y / 13)) - (18 + 4 * np.cos(y / 19) + 12 * np.clip(-y / 60, 0, 1) ** 2)
    heart_center = (22 + rng.normal(0, 4), -32.0, 148 + rng.normal(0, 7))
    heart = blob(canvas, where, heart_center, (58, 42, 50), turned(z=-30))  # its apex to the left and forward
    lung = np.maximum(torso.cavity[where] + 1.5, 2.2 - torso.diaphragm[where])
    lung = clip(lung, -join(between, heart - 5, 8), 3)
    texture = 1 + 0.09 * np.sin(x / 9 + 2 * np.sin(z / 13)) * np.sin(y / 8 + np.sin(x / 17))
    canvas.paint(where, np.maximum(between, torso.cavity[where]), tissues["fat"], within=torso.diaphragm[where] > 3)
    canvas.paint(where, lung, tissues["lung"] * texture)
    if "pleural effusion" in findings:
        level = rng.uniform(30, 58)
        canvas.paint(where, np.maximum(lung, level - y - 0.15 * np.abs(x)), tissues["fluid"])
    canvas.paint(where, np.maximum(heart, 4 - torso.diaphragm[where]), tissues["heart"])
    _paint_lung_vessels(canvas, rng)


def _paint_lung_vessels(canvas: Canvas, rng: np.random.Generator) -> None:
    """Branches that run down and outwards from the hila, visible as dots and short lines."""
    for side in (-1, 1):
        for _ in range(7):
            start = np.array([side * rng.uniform(30, 45), rng.uniform(-5, 25), 150.0])
            end = np.array([side * rng.uniform(50, 120), rng.uniform(-55, 62), rng.uniform(70, 120)])
            middle = (start + end) / 2 + rng.normal(0, 7, 3)
            points = np.stack([start, middle, end])
            near = canvas.around(points, 8)
            branch = tube(canvas, near, points, (3.6, 2.4, 1.2))
            in_lung = canvas.hu[near] < -600
            canvas.paint(near, branch, 20, within=in_lung)


def _paint_ascites(
    canvas: Canvas, torso: Torso, rng: np.random.Generator, tissues: dict[str, float], grain: np.ndarray
) -> Torso:
    """Free fluid: a rim inside the flanks and under the diaphragm, thickest at the sides.

    Returns:
        The torso with the space left for the organs.
    """
    depth = rng.uniform(9, 20)
    # The retroperitoneal space stays dry.
    thickness = depth * (0.5 + 0.6 * np.clip(np.abs(canvas.x) / 110, 0, 1)) * _smoothstep((52 - canvas.y) / 24)
    fluid = np.maximum(torso.cavity + 1, -torso.cavity - thickness - 1.5 * grain)
    fluid = np.maximum(fluid, torso.diaphragm + 1)
    fat_only = (canvas.hu > -180) & (canvas.hu < -20)
    canvas.paint(canvas.everywhere, fluid, tissues["fluid"], within=fat_only)
    return replace(torso, cavity=torso.cavity + 0.75 * thickness)


def _paint_back_muscles(canvas: Canvas, rng: np.random.Generator, tissues: dict[str, float], grain: np.ndarray) -> None:
    """Erector spinae, psoas, quadratus lumborum and the crura of the diaphragm."""
    build = rng.uniform(0.88, 1.12)
    heights = np.array([-150.0, -100, -50, 0, 50, 100, 150, 200])
    front = spine_front(heights)
    paint = partial(_paint_muscle, canvas, tissues, grain)
    for side in (-1.0, 1.0):
        erector = np.stack([side * np.full(8, 33.0), front + 47, heights], axis=1)
        paint(erector, np.array([20, 22, 23, 22, 20, 18, 16, 15]) * build, (1.3, 0.92, 1))
        psoas = np.array([[30, 12, 22], [32, 14, -5], [37, 13, -40], [44, 10, -80], [50, 6, -115], [54, 2, -150]])
        paint(psoas * (side, 1, 1), np.array([3, 8, 13, 18, 21, 21]) * build, (0.95, 1.1, 1))
        quadratus = np.array([[50, 40, 8], [58, 39, -25], [66, 38, -65], [74, 37, -110]])
        paint(quadratus * (side, 1, 1), np.array([6, 9, 11, 12]) * build, (1.5, 0.75, 1))
        crus = np.array([[15, 6, -25], [16, 4, 5], [20, 3, 40], [25, 1, 70], [30, 0, 92]])
        crus[:, 0] = np.where(side > 0, crus[:, 0] + 9, -crus[:, 0] + 8)
        paint(crus, np.array([2.5, 4, 4.5, 4, 3]), (0.75, 1.7, 1))


def _paint_muscle(
    canvas: Canvas,
    tissues: dict[str, float],
    grain: np.ndarray,
    points: np.ndarray,
    radii: np.ndarray,
    squash: tuple[float, float, float],
) -> None:
    where = canvas.around(points, float(radii.max()) * max(squash) + 4)
    muscle = tube(canvas, where, points, radii, squash) + 0.8 * grain[where]
    # A thin sheath of fat separates neighbouring muscles.
    canvas.paint(where, muscle - 2, tissues["fat"] + 15, within=canvas.hu[where] > -600)
    canvas.paint(where, muscle, np.float32(tissues["muscle"]) + 9 * grain[where])


def _paint_spine(canvas: Canvas, rng: np.random.Generator, tissues: dict[str, float], grain: np.ndarray) -> None:
    """Vertebral bodies with a dense rim, discs, the canal, arches and processes."""
    where = canvas.region(np.array([-55, -20, -400]), np.array([55, 150, 400]))
    x, y, z = canvas.x[where], canvas.y[where], canvas.z[where]
    if x.size == 0:
        return
    depth = y - spine_front(z).astype(np.float32)
    level = (z + np.float32(rng.uniform(0, _VERTEBRA))) % _VERTEBRA
    from_middle = np.abs(level - _VERTEBRA / 2)
    waist = 2.2 * np.cos(np.pi * np.clip(from_middle / 13, 0, 1)) + 0.4
    body = (np.sqrt((x / 22.5) ** 2 + ((depth - 16) / 16.5) ** 2) - 1) * 17
    disc = body + 1.5
    bone = clip(body + waist, from_middle - (_VERTEBRA - _DISC) / 2, 3)
    arch_height = from_middle - 12.5 + 0.12 * np.abs(x)
    canal = (np.sqrt((x / 11.5) ** 2 + ((depth - 40) / 8.5) ** 2) - 1) * 9
    arch = np.maximum(np.maximum(canal - 5, 27 - depth), arch_height)
    joints = np.maximum((np.sqrt(((np.abs(x) - 16) / 7) ** 2 + ((depth - 47) / 8) ** 2) - 1) * 7, from_middle - 15)
    process = np.maximum(np.maximum(np.abs(x) - 3.2, np.abs(depth - 62) - 16), np.abs(level - 13) - 9)
    wings = np.maximum(np.hypot(depth - 36 - 0.12 * np.abs(x), (level - 21) * 0.8) - 3.6, np.abs(x) - 41)
    back = join(join(arch, joints, 3), join(process, wings, 3), 3)
    marrow = np.float32(tissues["marrow"]) + 28 * grain[where]
    canvas.paint(where, disc, tissues["disc"])
    canvas.paint(where, bone, tissues["bone"] * 0.62)
    canvas.paint(where, bone + 2.1, marrow)
    canvas.paint(where, back, tissues["bone"] * 0.65)
    canvas.paint(where, back + 2.3, marrow + 40)
    canvas.paint(where, canal + 1, tissues["fat"] + 40)
    canvas.paint(where, canal + 3, tissues["thecal sac"])


def _paint_ribs(canvas: Canvas, torso: Torso, rng: np.random.Generator, tissues: dict[str, float]) -> None:
    """Arcs inside the wall that descend from the spine to the front, where they turn into cartilage."""
    shell = (torso.wall < 6) & (torso.wall > -18) & (canvas.z > -75)
    x, y, z, wall = canvas.x[shell], canvas.y[shell], canvas.z[shell], torso.wall[shell]
    # 0 at the spine, 1 at the sternum, along the wall.
    around = np.arctan2(np.abs(x), y * np.float32(TORSO_HALF_WIDTH / _HALF_DEPTH)) / np.float32(np.pi)
    fall = 118 * np.clip(around, 0, 0.72) - 75 * np.clip(around - 0.72, 0, 1)
    up = z + fall + np.float32(rng.uniform(0, _RIB_STEP))
    from_rib = (up + _RIB_STEP / 2) % _RIB_STEP - _RIB_STEP / 2
    # The costal margin, where each rib ends: low at the back, high in front.
    lowest = np.round((up - from_rib) / _RIB_STEP)
    reach = np.clip(0.30 + 0.17 * (lowest - 1.0), 0, 0.98)
    rib = (np.sqrt((from_rib / 6.3) ** 2 + ((wall + 7) / 4.0) ** 2) - 1) * 4.2
    rib = np.maximum(rib, np.maximum((around - reach) * 200, (0.13 - around) * 200))
    bony = _smoothstep((0.74 - around) / 0.06)
    outer = tissues["cartilage"] + bony * (tissues["bone"] * 0.8 - tissues["cartilage"])
    inner = tissues["cartilage"] + bony * (tissues["marrow"] + 40 - tissues["cartilage"])
    hu = canvas.hu[shell]
    for distance, value in ((rib, outer), (rib + 2.6, inner)):
        hu += canvas.cover(distance) * (value - hu)
    canvas.hu[shell] = hu


def _paint_hip_bones(canvas: Canvas, tissues: dict[str, float]) -> None:
    """The wings of the ilium, which appear in the lowest slices only."""
    for side in (-1.0, 1.0):
        crest = np.array([[58, 62, -150], [88, 48, -146], [112, 16, -143], [118, -18, -148]]) * (side, 1, 1)
        where = canvas.around(crest, np.array([10.0, 10, 50]))
        bone = tube(canvas, where, crest, (5, 4.5, 4.5, 5), (1, 1, 6.5))
        canvas.paint(where, bone, tissues["bone"])
        canvas.paint(where, bone + 3, tissues["marrow"])


def _paint_table(canvas: Canvas, tissues: dict[str, float]) -> None:
    """The scanner's table: a shallow shell under the back."""
    x, y = canvas.x, canvas.y
    shell = np.abs(y - 127 + 0.0013 * x**2) - 2.5
    canvas.paint(canvas.everywhere, np.maximum(shell, np.abs(x) - 190), tissues["table"])


def _smoothstep(t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)
