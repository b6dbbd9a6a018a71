"""The pixels of DICOM files in HU: GDCM, within SimpleITK, unpacks them, however they are compressed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from dlunet.errors import UserError
from dlunet.volumes.dicom.frames import Frame
from dlunet.volumes.dicom.headers import unreadable


def read_pixels(frames: list[Frame]) -> np.ndarray:
    """The voxels (z, y, x) in HU; a file of many frames is unpacked once."""
    voxels = np.empty((len(frames), *frames[0].shape), np.float32)
    by_file: dict[Path, list[int]] = {}
    for z, frame in enumerate(frames):
        by_file.setdefault(frame.path, []).append(z)
    for path, places in by_file.items():
        own = [frames[z] for z in places]
        pixels = _unpack(path, own)
        for z, frame in zip(places, own, strict=True):
            voxels[z] = pixels[frame.number]
    return voxels


def _unpack(path: Path, frames: list[Frame]) -> np.ndarray:
    """The frames (n, y, x) of a file in HU, in the file's order."""
    if frames[0].inverted or len({frame.rescale for frame in frames}) > 1:  # GDCM takes the first rescale for all
        return _unpack_as_stored(path, frames)
    try:
        image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise unreadable(path, error) from None
    size, expected = ("×".join(map(str, n)) for n in (image.GetSize(), (*frames[0].shape[::-1], len(frames))))
    if size != expected or image.GetNumberOfComponentsPerPixel() != 1:
        raise UserError(f"{path}: found {size} pixels; expected {expected}, as its header says; copy it again")
    return sitk.GetArrayViewFromImage(image).astype(np.float32)


def _unpack_as_stored(path: Path, frames: list[Frame]) -> np.ndarray:
    """As :func:`_unpack`, with each frame's own rescale."""
    try:
        pixels = pydicom.dcmread(path, force=True).pixel_array.astype(np.float32).reshape(-1, *frames[0].shape)
    except Exception as error:  # a compression that pydicom does not know, or a damaged file
        raise unreadable(path, error) from None
    for frame in frames:
        slope, intercept = frame.rescale
        pixels[frame.number] = pixels[frame.number] * slope + intercept
    return pixels
