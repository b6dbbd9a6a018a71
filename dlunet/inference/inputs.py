"""Finds the CTs to segment from the path that the user gives."""

from __future__ import annotations

import logging
from pathlib import Path

from dlunet.errors import UserError
from dlunet.files import read_any_text
from dlunet.volumes import case_name, is_meant_as_volume, is_series, list_volumes, unreadable_volumes

logger = logging.getLogger(__name__)


def find_images(source: Path) -> list[Path]:
    """The CTs of an input: a file, a folder of DICOM slices, a folder of CTs, or a list of any of these.

    Args:
        source: The input; a list is a ``.txt`` file with one path per line, absolute or relative to the list.

    Raises:
        UserError: It does not exist, the list is empty, or the folder contains no volume.
    """
    return _listed(source) if source.is_file() and source.suffix.lower() == ".txt" else _images_of(source)


def _listed(file: Path) -> list[Path]:
    lines = [line.strip() for line in read_any_text(file).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{file}: is empty; expected one path per line")
    sources = [file.parent / Path(line).expanduser() for line in lines]
    # One that is not there is reported when it is read; the other cases are still segmented.
    return [image for source in sources for image in (_images_of(source) if source.exists() else [source])]


def _images_of(source: Path) -> list[Path]:
    try:
        if source.is_file() or is_series(source):
            return [source]
    except OSError:  # reported when it is read; the other cases are still segmented
        return [source]
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected a CT or a folder of CTs")
    images = list_volumes(source)
    names = {case_name(path) for path in images}
    for path, message in unreadable_volumes(source).items():
        if is_meant_as_volume(path) and case_name(path) not in names:  # reported with the reason when it is read
            images.append(path)
            names.add(case_name(path))
        else:
            logger.warning("skipped: %s", message)
    if not names:
        raise UserError(f"{source}: contains no CT; expected .nii.gz, .nii, .mha or .nrrd files, or DICOM folders")
    return images
