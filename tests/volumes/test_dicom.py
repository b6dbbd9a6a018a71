"""DICOM series written slice by slice, compared with the arrays they were written from."""

import locale
import os
import tempfile

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset as Header
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from dlunet.datasets import Case, Dataset
from dlunet.errors import UserError
from dlunet.inference import find_images
from dlunet.labels import FLARE22
from dlunet.preparation import prepare_dataset
from dlunet.volumes import case_name, is_series, list_volumes, read_ct

SPACING = (2.5, 0.8, 0.7)
SHAPE = (8, 20, 16)
AXIAL, CORONAL = "1\\0\\0\\0\\1\\0", "1\\0\\0\\0\\0\\-1"


def voxels(seed=0):
    return np.random.default_rng(seed).normal(0, 300, SHAPE).round().astype(np.int16)


def write_series(folder, array, spacing=SPACING, rows=(1, 0, 0), columns=(0, 1, 0), step=None, uid="1.2.3.4", **tags):
    """Write the slices of ``array`` (z, y, x); ``step`` is the offset between slices (x, y, z in mm), by default along
    the normal. Tag values can be functions of the slice index."""
    folder.mkdir(parents=True, exist_ok=True)
    step = np.cross(rows, columns) * spacing[0] if step is None else np.array(step)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    before = locale.setlocale(locale.LC_ALL)
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
        # File names sort in reverse slice order.
        writer.SetFileName(str(folder / f"{uid}-{len(array) - number:03}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # ITK's writer leaves it at C: output of processes would not be UTF-8
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
    """The writer is given HU and stores (HU − intercept) / slope."""
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


def test_one_slice_has_its_thickness(tmp_path):
    assert read_ct(write_series(tmp_path / "ct", voxels()[:1])).spacing == pytest.approx(SPACING)


def remove_slice(folder):
    (folder / "1.2.3.4-004.dcm").unlink()


def cut_slice(folder):
    """Truncate the uppermost slice: without it, the others would still be evenly spaced."""
    path = folder / "1.2.3.4-001.dcm"
    path.write_bytes(path.read_bytes()[:-300])


def add_series(folder):
    write_series(folder, voxels(1), uid="1.2.3.5")


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"step": (0, 0.4, 2.46)}, None, r"gantry tilted by 9\.2.*°; expected an orthogonal stack"),
        ({}, remove_slice, r"found 5 mm between .*dcm and .*dcm; expected 2\.5 mm.*missing"),
        ({"step": (0, 0, 0)}, None, "found 0 mm between"),
        ({}, add_series, r"contains 2 series: 1\.2\.3\.4.*8 slices.*, 1\.2\.3\.5.*8 slices.*; expected one"),
        ({"t0008_0060": "MR"}, None, "found modality MR; expected CT"),
        (
            {"t0020_0037": lambda k: AXIAL if k else CORONAL},
            None,
            "contains 2 series|is not parallel to",
        ),
        ({}, cut_slice, "001.dcm: found 340 bytes of pixels; expected 640"),
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
    with pytest.raises(UserError, match="contains no DICOM series"):
        read_ct(tmp_path)


def edit(path, **values):
    """Set elements of a DICOM file; ``None`` removes an element."""
    header = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            del header[keyword]
        else:
            setattr(header, keyword, value)
    header.save_as(path)


def edit_all(folder, **values):
    for path in folder.iterdir():
        edit(path, **values)
    return folder


def enhanced(path, hu, order=None, gap_after=None, rescale=None, syntax=ExplicitVRLittleEndian, **values):
    """An enhanced CT with voxels of 4×4×5 mm; frames are stored in ``order``, each with its own position."""
    groups, stored = [], []
    for k in range(len(hu)) if order is None else order:
        slope, intercept = (1, -1024) if rescale is None else rescale(k)
        height = 100 + 5 * k + (50 if gap_after is not None and k > gap_after else 0)
        groups.append(
            functional_group(
                PlanePositionSequence={"ImagePositionPatient": [-20, 30, height]},
                PixelValueTransformationSequence={"RescaleSlope": slope, "RescaleIntercept": intercept},
            )
        )
        stored.append(np.rint((hu[k] - intercept) / slope).astype(np.int16))
    header = Header()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID, header.SOPInstanceUID = pydicom.uid.EnhancedCTImageStorage, "1.2.3.4.5"
    header.Modality, header.SeriesInstanceUID, header.StudyInstanceUID = "CT", "1.2.3.4", "1.2.3"
    header.NumberOfFrames, header.Rows, header.Columns = len(stored), *hu.shape[1:]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.SharedFunctionalGroupsSequence = [
        functional_group(
            PixelMeasuresSequence={"PixelSpacing": [4, 4], "SliceThickness": 5},
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        )
    ]
    header.PerFrameFunctionalGroupsSequence = groups
    header.PixelData = np.stack(stored).tobytes()
    for keyword, value in values.items():
        setattr(header, keyword, value)
    if syntax != ExplicitVRLittleEndian:
        header.compress(syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def functional_group(**sequences):
    group = Header()
    for name, values in sequences.items():
        item = Header()
        for keyword, value in values.items():
            setattr(item, keyword, value)
        setattr(group, name, [item])
    return group


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("order", [None, [3, 0, 7, 1, 6, 2, 5, 4]], ids=["in order", "out of order"])
@pytest.mark.parametrize("rescale", [None, lambda k: (1 + k % 2, -1000 - k)], ids=["one rescale", "rescale by frame"])
def test_an_enhanced_ct_as_a_file_and_in_a_folder(tmp_path, syntax, order, rescale):
    hu = np.random.default_rng(0).integers(-500, 500, SHAPE) * 2 - 1000
    hu = hu if rescale is None else hu - (np.arange(8) % 2)[:, None, None]  # so that every value can be stored
    hu[0, 0, 0] = -2000
    path = enhanced(tmp_path / "ct" / "enhanced.dcm", hu, order, rescale=rescale, syntax=syntax)
    for ct in (read_ct(path), read_ct(path.parent)):
        expected = hu if rescale is None else [rounded(hu[k], *rescale(k)) for k in range(8)]
        np.testing.assert_array_equal(ct.array, expected)
        assert ct.spacing == (5, 4, 4)
        assert ct.stored.origin == (-20, 30, 100) and ct.stored.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert find_images(path) == [path] and case_name(path) == "enhanced"


def rounded(hu, slope, intercept):
    return np.rint((hu - intercept) / slope) * slope + intercept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gap_after": 3}, r"found 55 mm between enhanced\.dcm .frame 4. and enhanced\.dcm .frame 5.; expected 5 mm"),
        ({"order": [0, 1, 2, 2, 3, 4]}, "found 0 mm between"),
        ({"Modality": "MR"}, "found modality MR; expected CT"),
        ({"PerFrameFunctionalGroupsSequence": []}, "has no ImagePositionPatient"),
        ({"SharedFunctionalGroupsSequence": []}, "has no ImageOrientationPatient"),
        ({"NumberOfFrames": 7}, "describes 8 frames; expected 7"),
        ({"PixelData": bytes(16 * 20 * 7 * 2)}, "found 4480 bytes of pixels; expected 5120"),
    ],
)
def test_an_enhanced_ct_gets_the_checks_of_a_folder(tmp_path, settings, message):
    path = enhanced(tmp_path / "enhanced.dcm", voxels(), **settings)
    with pytest.raises(UserError, match=f"^{path}: .*{message}"):
        read_ct(path)


def test_one_slice_as_a_file(tmp_path):
    folder = write_series(tmp_path / "ct", voxels()[:1])
    (path,) = folder.iterdir()
    np.testing.assert_array_equal(read_ct(path).array, voxels()[:1])
    edit(path, Modality="MR")
    with pytest.raises(UserError, match=f"^{path}: found modality MR"):
        read_ct(path)


def test_one_slice_whose_distance_is_stated_instead_of_its_thickness(tmp_path):
    folder = edit_all(write_series(tmp_path / "ct", voxels()[:1]), SliceThickness=None, SpacingBetweenSlices=1.5)
    assert read_ct(folder).spacing == pytest.approx((1.5, *SPACING[1:]))


def no_slice(content):
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        no_slice(b""),
        no_slice(bytes(5000)),
        no_slice(b"<html>404</html>"),
        no_slice(b"x" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:132]),
        lambda path: path.write_bytes(path.read_bytes()[:400]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: (path.unlink(), path.symlink_to(path.with_name("gone"))),
        lambda path: path.rename(path.with_name(path.name + ".part")).write_bytes(b"half of it"),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_a_file_that_is_not_what_its_neighbours_are(tmp_path, change):
    """The uppermost slice is damaged: without it, the others would still be evenly spaced."""
    folder = write_series(tmp_path / "ct", voxels())
    change(folder / "1.2.3.4-001.dcm")
    with pytest.raises(UserError, match=rf"^{folder}/1\.2\.3\.4-001\.dcm(\.part)?: .*; expected .*copy it again"):
        read_ct(folder)


def test_what_may_lie_beside_slices(tmp_path):
    """DICOM objects that are not slices, text files and hidden files are ignored."""
    folder = write_series(tmp_path / "ct", voxels())
    for number, (kind, modality) in enumerate(
        [
            (pydicom.uid.RTStructureSetStorage, "RTSTRUCT"),
            (pydicom.uid.ComprehensiveSRStorage, "SR"),
            (pydicom.uid.GrayscaleSoftcopyPresentationStateStorage, "PR"),
            (pydicom.uid.RTDoseStorage, "RTDOSE"),
            (pydicom.uid.EncapsulatedPDFStorage, "DOC"),
        ]
    ):
        header = Header()
        header.file_meta = pydicom.dataset.FileMetaDataset()
        header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        header.SOPClassUID, header.SOPInstanceUID, header.Modality = kind, f"1.2.9.{number}", modality
        header.SeriesInstanceUID = f"1.2.8.{number}"
        header.save_as(folder / f"other{number}.dcm", enforce_file_format=True)
    for name in ("notes.txt", "DICOMDIR", ".DS_Store", "LICENSE", "series.json", "Thumbs.db"):
        (folder / name).write_text("x")
    np.testing.assert_array_equal(read_ct(folder).array, voxels())


@pytest.mark.parametrize("how", ["empty", "a page", "a broken link"])
@pytest.mark.parametrize(
    ("slices", "name", "passes"),
    [
        # The extension of the slices, with or without a suffix.
        ("IM{}.dcm", "IM9.dcm", False),
        ("IM{}.dcm", "other.DCM", False),
        ("IM{}.dcm", "IM9.dcm.part", False),
        ("IM{}.dcm", "IM9.dcm.x7Kq", False),
        # An incompletely downloaded slice is named like its neighbours.
        ("IM{}.dcm", "IM9", False),
        ("IM{}.dcm", "IM9.htm", False),
        ("IM{}.dcm", "IM9.tmp", False),
        ("IM{}.dcm", "IM9.crdownload", False),
        ("IM{}", "IM9", False),
        ("IM{}", "IM9.html", False),
        ("1.2.840.{}", "1.2.840.9", False),
        # Files that belong to an existing slice, or to none.
        ("IM{}.dcm", "IM1.txt", True),
        ("IM{}.dcm", "IM1.dcm.json", True),
        ("IM{}.dcm", "IM1.dcm.part", True),
        ("IM{}.dcm", "README", True),
        ("IM{}", "README", True),
        ("IM{}", "DICOMDIR", True),
        ("IM{}", "report.pdf", True),
        ("IM{}.dcm", "viewer.exe", True),
        ("IM{}.dcm", "all.zip", True),
        ("IM{}.dcm", "IM.bval", True),
        ("IM{}.dcm", "IM9.jpg", True),
        ("IM{}.dcm", ".IM9.dcm", True),
        ("1.2.840.{}", "notes.txt", True),
    ],
)
def test_what_is_called_like_a_slice_and_is_none(tmp_path, slices, name, passes, how):
    folder = write_series(tmp_path / "ct", voxels())
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / slices.format(number))
    if how == "a broken link":
        (folder / name).symlink_to(tmp_path / "gone")
    else:
        (folder / name).write_bytes(b"" if how == "empty" else b"<html>404</html>")
    if passes:
        np.testing.assert_array_equal(read_ct(folder).array, voxels())
    else:
        with pytest.raises(UserError, match=f"^{folder / name}: lies among DICOM slices but is not one"):
            read_ct(folder)


@pytest.mark.parametrize("place", [".1.2.3.4-001.dcm", "more/1.2.3.4-001.dcm"])
def test_a_slice_that_lies_aside(tmp_path, place):
    """The uppermost slice: without it, the others would still be evenly spaced. Other series may be there."""
    folder = write_series(tmp_path / "ct", voxels())
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "1.2.3.4-001.dcm").rename(folder / place)
    with pytest.raises(UserError, match=f"^{folder / place}: is a slice of the series in {folder}; expected all"):
        read_ct(folder)
    edit(folder / place, SeriesInstanceUID="1.9")
    np.testing.assert_array_equal(read_ct(folder).array, voxels()[:7])


def test_volumes_and_slices_in_one_folder(tmp_path):
    """The more frequent kind determines what the folder is; volumes beside a series are ignored with a warning."""
    folder = write_series(tmp_path / "ct", voxels())
    write_nifti(folder / "labels.nii.gz", np.zeros(SHAPE, np.uint8))
    assert is_series(folder)
    assert read_ct(folder).warnings == (
        "labels.nii.gz lies beside the slices and is ignored; put volumes and series into separate folders",
    )
    for path in sorted(folder.glob("*.dcm"))[1:]:
        path.unlink()
    assert is_series(folder)
    write_nifti(folder / "second.nii.gz", voxels())
    assert not is_series(folder)
    assert [path.name for path in find_images(folder)] == ["labels.nii.gz", "second.nii.gz"]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_slices_without_the_preamble(tmp_path, syntax):
    folder = write_series(tmp_path / "ct", voxels())
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        bare = Header()
        bare.update(dict(header.items()))
        if not syntax.is_little_endian:
            bare.PixelData = header.pixel_array.astype(">i2").tobytes()
        bare.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
        assert path.read_bytes()[:2] == (b"\x08\x00" if syntax.is_little_endian else b"\x00\x08")
    assert is_series(folder) and list_volumes(tmp_path) == [folder]
    np.testing.assert_array_equal(read_ct(folder).array, voxels())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"ImageOrientationPatient": None}, "has no ImageOrientationPatient"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
        ({"PixelSpacing": [0, 0.7]}, "found pixels of 0.7×0 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "found the orientation"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 1, 0]}, "not at right angles"),
        ({"Modality": "", "SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage}, "found no modality"),
        ({"Rows": None}, "has no pixels"),
        ({"RescaleSlope": 0}, "found a rescale slope of 0"),
        ({"ModalityLUTSequence": [Header()]}, "uses a lookup table for its values"),
        ({"SamplesPerPixel": 3, "PixelData": bytes(1920)}, "found 3 values per pixel"),
    ],
)
def test_a_series_that_lacks_something(tmp_path, values, message):
    folder = edit_all(write_series(tmp_path / "ct", voxels()), **values)
    with pytest.raises(UserError, match=f"^{folder}.*{message}.*; expected"):
        read_ct(folder)


@pytest.mark.parametrize("values", [{"Modality": "ct"}, {"ModalityLUTSequence": []}, {"HighBit": 0}])
def test_what_does_not_matter(tmp_path, values):
    folder = edit_all(write_series(tmp_path / "ct", voxels()), **values)
    np.testing.assert_array_equal(read_ct(folder).array, voxels())


@pytest.mark.parametrize("modality", ["", None])
def test_a_ct_whose_modality_is_blank(tmp_path, modality):
    """The SOP class identifies it as a CT."""
    folder = edit_all(write_series(tmp_path / "ct", voxels()), Modality=modality)
    np.testing.assert_array_equal(read_ct(folder).array, voxels())


@pytest.mark.parametrize("absent", [None, ""])
@pytest.mark.parametrize(("slope", "intercept"), [(None, -1024), (2, None), (None, None), (0.5, -3.25)])
def test_a_rescale_that_is_half_stated(tmp_path, slope, intercept, absent):
    folder = write_series(tmp_path / "ct", voxels())
    stored = np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir(), reverse=True)])
    edit_all(folder, RescaleSlope=slope or 1, RescaleIntercept=intercept or 0)
    edit_all(
        folder, **{k: absent for k, v in {"RescaleSlope": slope, "RescaleIntercept": intercept}.items() if v is None}
    )
    np.testing.assert_array_equal(read_ct(folder).array, stored * (slope or 1.0) + (intercept or 0.0))


def test_values_that_are_not_hu(tmp_path):
    folder = edit_all(write_series(tmp_path / "ct", voxels()), RescaleType="Z_EFF")
    assert read_ct(folder).warnings == ("its header states values in Z_EFF, not in HU",)
    for unit in ("HU", "hu", "Hounsfield", "US", ""):
        assert read_ct(edit_all(folder, RescaleType=unit)).warnings == ()


@pytest.mark.parametrize(
    ("distance", "decimals"), [(0.625, 2), (0.625, 1), (1.171875, 2), (1.171875, 1), (1.0 / 3, 3), (0.8, 1)]
)
def test_positions_that_are_rounded(tmp_path, distance, decimals):
    """Spacing is that of the complete stack: no slice is off by more than its own rounding and that of the ends."""
    heights = [round(-100.3 + distance * k, decimals) for k in range(60)]
    array = np.random.default_rng(0).integers(-1000, 1000, (60, 4, 4)).astype(np.int16)
    folder = write_series(
        tmp_path / "ct", array, step=(0, 0, 0), t0020_0032=lambda k: f"-20\\30\\{heights[k]}", t0018_0050="1"
    )
    ct = read_ct(folder)
    assert ct.spacing[0] == pytest.approx((heights[-1] - heights[0]) / 59, rel=1e-9)
    np.testing.assert_array_equal(ct.array, array)
    off = heights - (ct.stored.origin[2] + np.arange(60) * ct.stored.spacing[2])
    assert np.abs(off).max() <= 10.0**-decimals
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[30]).unlink()
    with pytest.raises(UserError, match="slices are missing or duplicated"):
        read_ct(folder)


def write_heights(folder, heights, across=0.0):
    array = np.random.default_rng(0).normal(0, 300, (len(heights), 4, 4)).round().astype(np.int16)
    places = [f"{-20 + across * k:.10g}\\30\\{height:.10g}" for k, height in enumerate(heights)]
    return write_series(folder, array, step=(0, 0, 0), t0020_0032=lambda k: places[k], t0018_0050="1")


@pytest.mark.parametrize(
    ("heights", "across", "said"),
    [
        (np.rint(np.arange(40) * 2.5), 0, "distances between slices that are not"),  # whole mm do not count as rounding
        (np.arange(40) * 3, 0, None),
        (np.cumsum([1.99] * 25 + [2.01] * 25), 0, "found 1.99 mm between"),  # 0.25 mm off in the middle
        (np.cumsum([1.999] * 25 + [2.001] * 25), 0, None),
        (np.arange(40) * 2.0, 0.01, "shifted against each other by up to 0.39 mm"),  # 0.56 pixels
        (np.arange(40) * 2.0, 0.001, None),
        (np.cumsum([1.25] * 20 + [5] * 10), 0, "found 10 of 29 distances between slices that are not 1.25 mm"),
        (np.cumsum([1.25] * 20 + [5] + [1.25] * 10), 0, "found 5 mm between"),
    ],
)
def test_stacks_that_are_nearly_even(tmp_path, heights, across, said):
    folder = write_heights(tmp_path / "ct", heights, across)
    if said is None:
        assert read_ct(folder).spacing[0] == pytest.approx(np.diff(heights).mean())
    else:
        with pytest.raises(UserError, match=f"^{folder}: .*{said}.*; expected"):
            read_ct(folder)


def test_a_number_with_a_decimal_comma_is_named(tmp_path):
    folder = edit_all(write_series(tmp_path / "ct", voxels()), PixelSpacing=[0.125, 0.25])
    for path in folder.iterdir():
        assert b"0.125\\0.25" in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(b"0.125\\0.25", b"0,125\\0,25"))
    with pytest.raises(UserError, match=r"001\.dcm: found .*0,125.*0,25.* as PixelSpacing; expected 2 numbers"):
        read_ct(folder)


def test_monochrome1_says_how_to_show_values_and_not_what_they_are(tmp_path):
    """HU = stored value × slope + intercept."""
    folder = write_series(tmp_path / "ct", voxels())
    stored = np.stack([pydicom.dcmread(path).pixel_array for path in sorted(folder.iterdir(), reverse=True)])
    edit_all(folder, PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=-10)
    np.testing.assert_array_equal(read_ct(folder).array, stored * 2.0 - 10)


def test_two_acquisitions_in_one_series(tmp_path):
    folder = write_series(tmp_path / "ct", voxels(), t0020_0012="1")
    for path in sorted(folder.iterdir()):
        header = pydicom.dcmread(path)
        header.AcquisitionNumber = 2
        header.save_as(path.with_name(f"second-{path.name}"))
    with pytest.raises(UserError, match=r"0 mm between .*, as between 8 pairs of its 16 slices .acquisitions 1, 2"):
        read_ct(folder)
    next(folder.glob("second-*")).unlink()
    with pytest.raises(UserError, match="as between 7 pairs of its 15 slices"):
        read_ct(folder)


def test_a_slice_that_is_there_twice(tmp_path):
    folder = write_series(tmp_path / "ct", voxels())
    path = folder / "1.2.3.4-003.dcm"
    path.with_name("copy.dcm").write_bytes(path.read_bytes())
    with pytest.raises(
        UserError, match=r"found 0 mm between 1\.2\.3\.4-003\.dcm and copy\.dcm, as between 1 pair of its 9"
    ):
        read_ct(folder)


def test_a_series_number_of_its_own_for_each_slice(tmp_path):
    """Written by some scanners and anonymisers: one CT, if the headers show that the slices belong together."""
    folder = write_series(tmp_path / "ct", voxels())
    for number, path in enumerate(sorted(folder.iterdir())):
        edit(path, SeriesInstanceUID=f"1.2.3.{number}", FrameOfReferenceUID="1.2.7")
    np.testing.assert_array_equal(read_ct(folder).array, voxels())
    edit(path, StudyInstanceUID="1.9")
    with pytest.raises(UserError, match=r"contains 8 series: .*, .*, .*, …; expected one") as error:
        read_ct(folder)
    assert len(str(error.value)) < 400


def test_a_slice_whose_name_is_not_utf8(tmp_path):
    folder = write_series(tmp_path / "ct", voxels())
    (folder / "1.2.3.4-001.dcm").rename(folder / os.fsdecode(b"Sch\xe4del.dcm"))
    with pytest.raises(UserError, match=r"Sch\?del\.dcm: its name is not UTF-8"):
        read_ct(folder)
    with pytest.raises(UserError, match="its name is not UTF-8"):
        read_ct(folder.rename(tmp_path / os.fsdecode(b"\xff")))


@pytest.mark.parametrize(
    ("bits", "signed", "big_endian"), [(12, False, False), (12, True, False), (16, True, True), (12, False, True)]
)
def test_bits_that_are_no_pixels(tmp_path, bits, signed, big_endian):
    """The remaining bits of a pixel, where old files store overlays, are not read."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    stored = np.random.default_rng(0).integers(low, high, SHAPE)
    overlay = np.random.default_rng(1).integers(0, 2 ** (16 - bits), SHAPE) << bits
    folder = write_series(tmp_path / "ct", voxels())
    for path, pixels in zip(sorted(folder.iterdir(), reverse=True), (stored & (2**bits - 1)) | overlay, strict=True):
        header = pydicom.dcmread(path)
        header.BitsStored, header.HighBit, header.PixelRepresentation = bits, bits - 1, int(signed)
        header.RescaleSlope, header.RescaleIntercept = 1, -1024
        header.PixelData = pixels.astype(">u2" if big_endian else "<u2").tobytes()
        if big_endian:
            header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
        pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=not big_endian, force_encoding=True)
    np.testing.assert_array_equal(read_ct(folder).array, stored - 1024)


@pytest.mark.parametrize("syntax", [RLELossless, pydicom.uid.DeflatedExplicitVRLittleEndian])
def test_compressed_slices(tmp_path, syntax):
    folder = write_series(tmp_path / "ct", voxels())
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        if syntax == RLELossless:
            header.compress(syntax)
        header.file_meta.TransferSyntaxUID = syntax
        header.save_as(path, implicit_vr=False, little_endian=True)
    np.testing.assert_array_equal(read_ct(folder).array, voxels())


def test_functional_groups_are_told_apart(tmp_path):
    """The same element in another functional group has another meaning; an absent one is looked up in the top-level
    data set."""
    hu = voxels()
    path = enhanced(tmp_path / "enhanced.dcm", hu)
    header = pydicom.dcmread(path)
    for group in header.PerFrameFunctionalGroupsSequence:
        other = Header()
        other.RescaleSlope, other.RescaleIntercept, other.PixelSpacing = 7, 7, [9, 9]
        group.DerivationImageSequence = [other]
        group._dict = dict(sorted(group._dict.items()))  # ahead of the relevant groups
    measures = header.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    header.PixelSpacing = measures.PixelSpacing
    del measures.PixelSpacing
    header.save_as(path)
    ct = read_ct(path)
    np.testing.assert_array_equal(ct.array, hu)
    assert ct.spacing == (5, 4, 4)


def compress(folder, compressor):
    """Compress slices with GDCM's JPEG codecs."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    before = locale.setlocale(locale.LC_ALL)
    for path in folder.iterdir():
        image = sitk.ReadImage(str(path))
        writer.SetFileName(str(path))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)
    return folder


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_slices_compressed_by_jpeg(tmp_path, compressor):
    """Including files whose values GDCM would invert, or whose SOP class or trailing padding it would refuse."""
    folder = compress(write_series(tmp_path / "ct", voxels()), compressor)
    assert pydicom.dcmread(next(folder.iterdir())).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read_ct(folder).array, voxels())
    edit_all(
        folder,
        PhotometricInterpretation="MONOCHROME1",
        SOPClassUID="1.2.3.4.5.6",
        RescaleSlope=2,
        RescaleIntercept=-10,
        DataSetTrailingPadding=b"1234",
    )
    np.testing.assert_array_equal(read_ct(folder).array, voxels() * 2.0 - 10)


END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize(("missing", "taken"), [(0, True), (len(END), True), (len(END) + 4, False), (60, False)])
def test_compressed_pixels_without_an_end(tmp_path, missing, taken):
    """Some writers omit the delimiter after the items, but not the end of the image."""
    folder = compress(write_series(tmp_path / "ct", voxels()), "JPEG2000")
    path = next(folder.iterdir())
    content = path.read_bytes()
    assert content.endswith(END)
    path.write_bytes(content[: len(content) - missing])
    if taken:
        np.testing.assert_array_equal(read_ct(folder).array, voxels())
    else:
        with pytest.raises(UserError, match=f"^{path}: cannot be read as DICOM .its pixels are truncated"):
            read_ct(folder)


def test_compressed_pixels_and_no_place_for_temporary_files(tmp_path, monkeypatch):
    folder = compress(write_series(tmp_path / "ct", voxels()), "JPEG")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=f"^{folder}.*no temporary file can be written .No such file.*set TMPDIR"):
        read_ct(folder)


def test_a_compression_that_cannot_be_unpacked(tmp_path):
    folder = compress(write_series(tmp_path / "ct", voxels()), "JPEG2000")
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        header.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
        header.save_as(path)
    with pytest.raises(UserError, match=r"cannot be unpacked from MPEG2 .*; expected"):
        read_ct(folder)
