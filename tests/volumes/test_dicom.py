"""DICOM series, written slice by slice, beside the arrays that they were written from."""

import numpy as np
import pytest
import SimpleITK as sitk

from dlunet.datasets import Case, Dataset
from dlunet.errors import UserError
from dlunet.files import file_stamp
from dlunet.inference import find_images
from dlunet.labels import FLARE22
from dlunet.preparation import prepare_dataset
from dlunet.volumes import case_name, is_series, list_volumes, read_ct

SPACING = (2.5, 0.8, 0.7)
SHAPE = (8, 20, 16)
AXIAL, CORONAL = "1\\0\\0\\0\\1\\0", "1\\0\\0\\0\\0\\-1"


def voxels(seed=0):
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE).astype(np.int16)


def write_series(folder, array, spacing=SPACING, rows=(1, 0, 0), columns=(0, 1, 0), step=None, uid="1.2.3.4", **tags):
    """Write slices (z, y, x); ``step`` is from slice to slice, x, y, z in mm, by default along the normal. Tags can be
    functions of the slice's number."""
    folder.mkdir(parents=True, exist_ok=True)
    step = np.cross(rows, columns) * spacing[0] if step is None else np.array(step)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, pixels in enumerate(array):
        image = sitk.GetImageFromArray(pixels)
        image.SetSpacing((spacing[2], spacing[1]))
        header = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{uid}.9.{number + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{mm:.6f}" for mm in np.array([-20.0, 30.0, 100.0]) + number * step),
            "0020|0037": "\\".join(f"{cosine:.6f}" for cosine in (*rows, *columns)),
            "0018|0050": str(spacing[0]),
            **{tag.replace("_", "|").removeprefix("t"): value for tag, value in tags.items()},
        }
        for tag, value in header.items():
            image.SetMetaData(tag, value(number) if callable(value) else value)
        # Names in the order opposite to that of the slices.
        writer.SetFileName(str(folder / f"{uid}-{len(array) - number:03}.dcm"))
        writer.Execute(image)
    return folder


def write_nifti(path, array, rows=(1, 0, 0), columns=(0, 1, 0)):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((-20, 30, 100))
    image.SetDirection(np.array([rows, columns, np.cross(rows, columns)]).T.ravel().tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, -1, 0)), ((0, 1, 0), (0, 0, -1)), ((0.8, 0.6, 0), (-0.6, 0.8, 0))],
    ids=["axial", "upside down", "sagittal", "oblique"],
)
def test_a_series_is_the_same_as_its_nifti(tmp_path, rows, columns):
    array = voxels()
    series = read_ct(write_series(tmp_path / "series", array, rows=rows, columns=columns))
    nifti = read_ct(write_nifti(tmp_path / "ct.nii.gz", array, rows, columns))
    np.testing.assert_array_equal(series.array, nifti.array)
    assert series.spacing == pytest.approx(nifti.spacing, abs=1e-5)
    assert series.stored.same_grid(nifti.stored)
    assert series.array.dtype == np.float32


def test_a_series_prepares_to_the_same_array_as_its_nifti(tmp_path):
    array, labels = voxels(), np.zeros(SHAPE, np.uint8)
    labels[2:5, 5:12, 4:11] = 1
    label = write_nifti(tmp_path / "labels" / "a.nii.gz", labels)
    prepared = []
    for image in (write_series(tmp_path / "a", array), write_nifti(tmp_path / "b" / "a.nii.gz", array)):
        dataset = Dataset(FLARE22, (Case("a", image, label),))
        folder = tmp_path / f"prepared-{image.suffix}"
        prepared += prepare_dataset(dataset, folder, (2.0, 1.0, 1.0), (8, 8, 8), workers=1).labelled
    np.testing.assert_array_equal(prepared[0].image, prepared[1].image)
    np.testing.assert_array_equal(prepared[0].label, prepared[1].label)


def test_every_slice_s_own_rescale_is_honoured(tmp_path):
    """Written as HU, so that the writer stores (HU − intercept) / slope; stored values are checked not to be HU."""
    slopes, intercepts = (lambda k: str(1 + k)), (lambda k: str(-1000 - 10 * k))
    stored = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    hu = stored * (1.0 + np.arange(8))[:, None, None] - (1000 + 10 * np.arange(8))[:, None, None]
    folder = write_series(tmp_path / "ct", hu.astype(np.int16), t0028_1053=slopes, t0028_1052=intercepts)
    np.testing.assert_allclose(read_ct(folder).array, hu, atol=1e-3)


def test_folders_of_series_are_cases(tmp_path):
    for name in ("patient.1", "patient.2"):
        write_series(tmp_path / name, voxels())
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no CT")
    write_nifti(tmp_path / "patient.3.nii.gz", voxels())
    found = list_volumes(tmp_path)
    assert [case_name(path) for path in found] == ["patient.1", "patient.2", "patient.3"]
    assert find_images(tmp_path) == found and find_images(found[0]) == found[:1]
    assert [is_series(path) for path in found] == [True, True, False]
    before = file_stamp(found[0])
    slice_ = next(found[0].iterdir())
    slice_.write_bytes(slice_.read_bytes() + b"x")
    assert file_stamp(found[0]) != before


def test_one_slice_has_its_thickness(tmp_path):
    assert read_ct(write_series(tmp_path / "ct", voxels()[:1])).spacing == pytest.approx(SPACING)


def remove_slice(folder):
    (folder / "1.2.3.4-004.dcm").unlink()


def cut_slice(folder):
    """The uppermost: without it, the others would still be an even stack."""
    path = folder / "1.2.3.4-001.dcm"
    path.write_bytes(path.read_bytes()[:-300])


def add_series(folder):
    write_series(folder, voxels(1), uid="1.2.3.5")


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"step": (0, 0.4, 2.46)}, None, r"gantry tilted by 9\.2.*°; expected a stack at right angles"),
        ({}, remove_slice, r"found 5 mm between .*dcm and .*dcm; expected 2\.5 mm.*missing"),
        ({"step": (0, 0, 0)}, None, "found 0 mm between"),
        ({}, add_series, r"holds 2 series: 1\.2\.3\.4.*8 slices.*, 1\.2\.3\.5.*8 slices.*; expected one"),
        ({"t0008_0060": "MR"}, None, "found modality MR; expected CT"),
        (
            {"t0020_0037": lambda k: AXIAL if k else CORONAL},
            None,
            "holds 2 series|turned against",
        ),
        ({}, cut_slice, "001.dcm: cannot be read as DICOM"),
    ],
    ids=["tilt", "missing", "same place", "two series", "modality", "turned", "cut off"],
)
def test_what_is_no_upright_even_ct_is_refused(tmp_path, settings, change, message):
    folder = write_series(tmp_path / "ct", voxels(), **settings)
    if change:
        change(folder)
    with pytest.raises(UserError, match=message) as error:
        read_ct(folder)
    assert str(folder) in str(error.value)


def test_a_folder_without_a_series(tmp_path):
    with pytest.raises(UserError, match="holds no DICOM series"):
        read_ct(tmp_path)
