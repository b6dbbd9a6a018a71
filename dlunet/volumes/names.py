"""File names: endings of volumes and names of cases."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from unicodedata import normalize

#: File endings that are read as volumes; DICOM files are recognised by content.
SUFFIXES = (".nii.gz", ".nii", ".mha", ".nrrd")

#: File endings of unsupported volume formats.
OTHER_SUFFIXES = (".mhd", ".hdr", ".img", ".img.gz", ".nii.bz2", ".nii.zst", ".nhdr", ".dcm", ".ima", ".mgz", ".vtk")


def file_stem(path: Path) -> str:
    """The file name without its ending, if that is one of a volume; a folder's name unchanged.

    Of a DICOM file named by a unique identifier, such as 1.2.840.55, nothing is an ending.
    Names are normalised to NFC, because macOS stores umlauts as two characters: names that look equal are equal.
    """
    suffix = ""
    if not path.is_dir():
        suffix = next((s for s in (*SUFFIXES, *OTHER_SUFFIXES) if path.name.lower().endswith(s)), "")
    return normalize("NFC", path.name[: len(path.name) - len(suffix)])


def case_name(path: Path) -> str:
    """The case of a CT: its file name without ending and channel suffix ``_0000``; a folder's name unchanged."""
    stem = file_stem(path)
    return stem if path.is_dir() else stem.removesuffix("_0000") or stem


def label_name(path: Path, cases: Container[str]) -> str:
    """The case of a label map: its whole name, if a case is called so, or else its name without ``_0000``.

    Some tools add the channel suffix of the CTs to label maps as well, but the name of a case may end in it, too.

    Args:
        path: The label map.
        cases: The names of the cases that it may belong to.
    """
    stem = file_stem(path)
    return stem if stem in cases else case_name(path)
