"""File names: endings of volumes and names of cases."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

#: File endings that are read as volumes; DICOM files are recognised by content.
SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")

#: File endings of unsupported volume formats.
OTHER_SUFFIXES = (".mhd", ".hdr", ".img", ".img.gz", ".nii.bz2", ".nii.zst", ".nhdr", ".dcm", ".mgz", ".vtk")


def case_name(path: Path) -> str:
    """The file name without its ending and the channel suffix ``_0000``; a folder's name unchanged.

    Names are normalised to NFC, because macOS stores umlauts as two characters: names that look equal are equal.
    """
    if path.is_dir():
        return normalize("NFC", path.name)
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), path.suffix)
    stem = path.name[: len(path.name) - len(suffix)]
    return normalize("NFC", stem.removesuffix("_0000") or stem)
