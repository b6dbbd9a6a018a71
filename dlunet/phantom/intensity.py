"""Hounsfield units of the tissues: contrast phase, texture and noise."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from dlunet.phantom.variation import PHASES

#: Mean HU by phase: non-contrast, arterial, portal venous, late.
_ENHANCEMENT: dict[str, tuple[float, float, float, float]] = {
    "liver": (56, 66, 104, 92),
    "liver vessel": (42, 75, 150, 118),
    "spleen": (48, 112, 114, 96),
    "renal cortex": (34, 155, 158, 128),
    "renal medulla": (30, 62, 138, 132),
    "pancreas": (40, 92, 88, 76),
    "aorta": (42, 270, 146, 118),
    "ivc": (40, 72, 124, 112),
    "portal vein": (42, 95, 152, 116),
    "renal vein": (40, 135, 148, 118),
    "adrenal": (28, 62, 68, 60),
    "esophagus": (38, 54, 62, 58),
    "stomach wall": (40, 68, 82, 74),
    "bowel wall": (38, 66, 80, 70),
    "muscle": (50, 54, 60, 60),
    "heart": (42, 190, 135, 112),
    "marrow": (140, 148, 160, 155),
}

#: HU that do not depend on contrast medium.
_FIXED: dict[str, float] = {
    "air": -1000,
    "gas": -960,
    "lung": -840,
    "fat": -104,
    "skin": 10,
    "bone": 640,
    "cartilage": 105,
    "disc": 82,
    "thecal sac": 28,
    "bile": 10,
    "fluid": 8,
    "faeces": 25,
    "calcium": 560,
    "table": -30,
}

#: Standard deviation of each tissue's mean between cases, as a fraction of its enhancement, and in HU.
_JITTER_SHARE, _JITTER_HU = 0.1, 4.0


def draw_tissues(rng: np.random.Generator, phase: str) -> dict[str, float]:
    """Mean HU of every tissue of one case in a phase; circulation and timing vary between patients."""
    column = PHASES.index(phase)
    timing = rng.normal(1.0, _JITTER_SHARE)
    tissues = dict(_FIXED)
    for name, values in _ENHANCEMENT.items():
        enhancement = (values[column] - values[0]) * timing * rng.normal(1.0, _JITTER_SHARE)
        tissues[name] = values[0] + enhancement + rng.normal(0, _JITTER_HU)
    tissues["marrow"] += rng.normal(0, 25)
    tissues["fat"] += rng.normal(0, 3)
    tissues["bile"] += rng.normal(0, 5)
    return tissues


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing: tuple[float, float, float], grain: float
) -> np.ndarray:
    """A random smooth field of mean 0 and standard deviation about 1, float32.

    Args:
        rng: Random generator.
        shape: Voxels (z, y, x).
        spacing: Voxel size (z, y, x) in mm.
        grain: Knot spacing of its cubic B-splines in mm; bumps are about twice as wide.
    """
    bases = [_spline_basis(n, s, grain) for n, s in zip(shape, spacing, strict=True)]
    field = rng.standard_normal([basis.shape[1] for basis in bases], np.float32)
    for basis in bases:
        # Contracts the first axis and appends the new one last, so that three rounds restore (z, y, x).
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


def add_noise(
    rng: np.random.Generator, hu: np.ndarray, center_distance: np.ndarray, level: float, in_body: np.ndarray
) -> np.ndarray:
    """Add scanner-like noise: correlated over neighbouring voxels, strongest where rays cross most tissue.

    Args:
        rng: Random generator.
        hu: The noiseless CT (z, y, x).
        center_distance: Distance of each voxel from the long axis of the torso in mm.
        level: Standard deviation in HU, averaged over the torso.
        in_body: Fraction of each voxel inside the body; outside, noise is weak.

    Returns:
        The noisy CT, float32.
    """
    noise = gaussian_filter(rng.standard_normal(hu.shape, np.float32), (0.35, 0.75, 0.75), truncate=3.0)
    noise *= np.float32(level / max(float(noise.std()), 1e-6))
    strength = (0.75 + 0.5 * np.exp(-((center_distance / 90) ** 2))) * (0.35 + 0.65 * in_body)
    return hu + noise * strength


def _spline_basis(voxels: int, spacing: float, grain: float) -> np.ndarray:
    """Cubic B-splines (voxels, knots) without a random phase: the knots are centred on the field of view."""
    pieces = max(1, int(np.ceil(voxels * spacing / grain)))
    knots = np.arange(-3, pieces + 4, dtype=float)
    at = (np.arange(voxels) + 0.5) * pieces / voxels
    basis = BSpline.design_matrix(at, knots, 3).toarray().astype(np.float32)
    # Independent weights of unit variance sum to a variance of Σ basis², which is normalised to 1.
    return basis / np.sqrt((basis**2).sum(axis=1).mean())
