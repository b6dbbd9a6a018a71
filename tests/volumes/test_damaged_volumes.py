"""Files with cut, doubled, flipped or zeroed bytes: read correctly, or refused with a reason, in time."""

import time

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from dlunet.errors import UserError
from dlunet.volumes import read_ct, read_labels

SHAPE = (6, 24, 20)
HU = np.random.default_rng(0).normal(0, 200, SHAPE).round().astype(np.int16)

#: Time limit per damaged file, in seconds.
PATIENCE = 10


def write_nifti(path, kind=nib.Nifti1Image):
    nib.save(kind(HU.transpose(2, 1, 0), np.diag([-1.5, -1.5, 3, 1])), path)
    return path


def write_itk(path, compress):
    sitk.WriteImage(sitk.GetImageFromArray(HU), str(path), useCompression=compress)
    return path


def header_of(kind, number=0):
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = kind, f"1.2.3.{number + 1}"
    header.Modality, header.StudyInstanceUID, header.SeriesInstanceUID = "CT", "1.2", "1.2.3"
    header.Rows, header.Columns = SHAPE[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    return header


def items(**sequences):
    group = pydicom.Dataset()
    for name, values in sequences.items():
        item = pydicom.Dataset()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(group, name, [item])
    return group


def write_series(folder, syntax):
    folder.mkdir()
    for number, pixels in enumerate(HU):
        header = header_of(pydicom.uid.CTImageStorage, number)
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.RescaleSlope, header.RescaleIntercept = [1.5, 1.5], 1, 0
        header.PixelData = pixels.tobytes()
        if syntax != ExplicitVRLittleEndian:
            header.compress(syntax)
        header.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def write_enhanced(path):
    header = header_of(pydicom.uid.EnhancedCTImageStorage)
    header.NumberOfFrames = len(HU)
    header.SharedFunctionalGroupsSequence = [
        items(
            PixelMeasuresSequence={"PixelSpacing": [1.5, 1.5]},
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": 0},
        )
    ]
    header.PerFrameFunctionalGroupsSequence = [
        items(PlanePositionSequence={"ImagePositionPatient": [0, 0, 3 * k]}) for k in range(len(HU))
    ]
    header.PixelData = HU.tobytes()
    header.save_as(path, enforce_file_format=True)
    return path


#: Per format: the writer, and whether a checksum detects damage anywhere in the file.
FORMATS = {
    "nii": (lambda folder: write_nifti(folder / "ct.nii"), False),
    "nii.gz": (lambda folder: write_nifti(folder / "ct.nii.gz"), True),
    "NIfTI-2": (lambda folder: write_nifti(folder / "ct.nii.gz", nib.Nifti2Image), True),
    "mha": (lambda folder: write_itk(folder / "ct.mha", False), False),
    "mha, compressed": (lambda folder: write_itk(folder / "ct.mha", True), False),
    "nrrd": (lambda folder: write_itk(folder / "ct.nrrd", False), False),
    "nrrd, compressed": (lambda folder: write_itk(folder / "ct.nrrd", True), False),
    "slices": (lambda folder: write_series(folder / "series", ExplicitVRLittleEndian), False),
    "slices, compressed": (lambda folder: write_series(folder / "series", RLELossless), False),
    "enhanced": (lambda folder: write_enhanced(folder / "ct.dcm"), False),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file(tmp_path, name, damage, rounds):
    write, checked = FORMATS[name]
    whole = write(tmp_path)  # 200 files in total, or 2,000 with --hypothesis-profile=full
    expected = read_ct(whole).array
    np.testing.assert_array_equal(expected, HU)
    target = whole / "3.dcm" if whole.is_dir() else whole
    content = target.read_bytes()
    rng = np.random.default_rng(list(f"{name} {damage.__name__}".encode()))
    for number in range(rounds):
        changed = damage(content, rng)
        target.write_bytes(changed)
        start = time.monotonic()
        for read in (read_ct, read_labels):
            try:
                found = read(whole).array
            except UserError as error:
                assert str(whole) in str(error) and len(str(error)) < 1000, (number, error)
                continue
            if damage.__name__ == "cut" or checked:
                # Damage outside the voxel data may rearrange voxels, but no value is made up.
                np.testing.assert_array_equal(
                    np.sort(found, None), np.sort(expected.astype(found.dtype), None), f"{number}"
                )
        assert time.monotonic() - start < PATIENCE, number
