"""What names of files say: whether one is meant as a volume, and what the case is called."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

#: File endings that are read as volumes; DICOM files are known by their contents.
SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")

#: File endings of volumes that are not read.
OTHER_SUFFIXES = (".mhd", ".hdr", ".img", ".img.gz", ".nii.bz2", ".nii.zst", ".nhdr", ".dcm", ".mgz", ".vtk")


def case_name(path: Path) -> str:
    """The file's name without its ending and without the channel suffix ``_0000``; a folder's name as it is.

    An umlaut is one letter, as which macOS does not write it: names that look the same are the same.
    """
    if path.is_dir():
        return normalize("NFC", path.name)
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), path.suffix)
    stem = path.name[: len(path.name) - len(suffix)]
    return normalize("NFC", stem.removesuffix("_0000") or stem)
