"""Files of CTs and label maps: every way to store them reads to the same array or a helpful message."""

import gzip
import os
import re
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from dlunet.errors import UserError
from dlunet.volumes import case_name, label_name, list_volumes, read_ct, read_labels, unreadable_volumes, write_labels

SHAPE, SPACING, ORIGIN = (3, 4, 5), (5.0, 0.7, 0.9), (-31.0, 12.5, 210.0)
HU = np.random.default_rng(0).normal(-50, 200, SHAPE).round().astype(np.int16)
LABELS = np.random.default_rng(1).integers(0, 14, SHAPE).astype(np.uint8)
ORIENTATIONS = ["".join(p) for sides in product("LR", "PA", "SI") for p in permutations(sides)]
OBLIQUE = Rotation.from_euler("ZYX", [20, -15, 10], degrees=True).as_matrix()
ROTATIONS = [pytest.param(None, id="upright"), pytest.param(OBLIQUE, id="oblique")]


def grid_of(path):
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_reads_the_same_and_is_written_back(tmp_path, write_volume, orientation, rotation):
    grid = {"spacing": SPACING, "origin": ORIGIN, "orientation": orientation, "rotation": rotation}
    ct = read_ct(write_volume(tmp_path / "ct.nii.gz", HU, **grid))
    np.testing.assert_array_equal(ct.array, HU)
    assert ct.array.dtype == np.float32
    assert ct.spacing == pytest.approx(SPACING)

    # Labels written back equal those of another writer, voxel by voxel in stored order.
    expected = write_volume(tmp_path / "expected.nii.gz", LABELS, **grid)
    written = tmp_path / "out" / "labels.nii.gz"
    write_labels(LABELS, written, ct.stored)
    ours, theirs = (sitk.ReadImage(str(path)) for path in (written, expected))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(theirs))
    assert ours.GetPixelID() == sitk.sitkUInt8
    for found, wanted in zip(grid_of(written), grid_of(tmp_path / "ct.nii.gz"), strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    np.testing.assert_array_equal(read_labels(written, 14).array, LABELS)
    assert os.listdir(written.parent) == ["labels.nii.gz"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_types_and_formats(tmp_path, write_volume, dtype, ending):
    fraction = 0.25 if np.issubdtype(dtype, np.floating) else 0
    path = write_volume(tmp_path / f"ct{ending}", (HU + fraction).astype(dtype), spacing=SPACING, orientation="RAS")
    ct = read_ct(path)
    assert ct.array.dtype == np.float32
    np.testing.assert_array_equal(ct.array, HU + fraction)
    assert ct.spacing == pytest.approx(SPACING)


def test_the_scaling_of_a_nifti_header_is_applied(tmp_path, write_volume):
    path = write_volume(tmp_path / "ct.nii", HU)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([2.0, -1024.0], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    np.testing.assert_array_equal(read_ct(path).array, HU * 2.0 - 1024)


def damaged(folder, write_volume, how):
    """A file that is not a CT, and the expected part of its error message."""
    path = folder / "bad.nii.gz"
    if how == "missing":
        return path, "no such file"
    if how == "text":
        path.write_text("PatientID,Age\n")
        return path, "cannot be read as a volume"
    if how == "4-D":
        sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(HU)] * 2), str(path))
        return path, "4 dimensions (5×4×3×2)"
    if how == "vector":
        return write_volume(path, np.stack([HU, HU], axis=-1)), "2 values per voxel"
    if how in ("NaN", "infinite"):
        values = HU.astype(np.float64)
        values[0, 1, 2:4] = np.nan if how == "NaN" else -np.inf
        return write_volume(path, values), "2 voxels are NaN or infinite"
    big = np.random.default_rng(2).integers(-1000, 1000, (40, 80, 80)).astype(np.int16)
    content = bytearray(write_volume(path, big).read_bytes())
    if how == "corrupt":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        return path, "damaged"
    path.write_bytes(content[: len(content) * 9 // 10])
    return path, "truncated"


@pytest.mark.parametrize("how", ["missing", "text", "4-D", "vector", "NaN", "infinite", "corrupt", "truncated"])
@pytest.mark.parametrize("read", [read_ct, read_labels])
def test_a_file_that_is_no_ct_is_named(tmp_path, write_volume, read, how):
    path, message = damaged(tmp_path, write_volume, how)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}.*expected"):
        read(path)


@pytest.mark.parametrize("ending", [".nii", ".mha", ".nrrd"])
def test_other_formats_cut_off(tmp_path, write_volume, ending):
    path = write_volume(tmp_path / f"ct{ending}", HU)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"^{path}: .*expected"):
        read_ct(path)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_damaged_voxels_of_other_formats(tmp_path, ending, compressed):
    voxels = np.random.default_rng(2).integers(-1000, 1000, (40, 80, 80)).astype(np.int16)
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=compressed)
    np.testing.assert_array_equal(read_ct(path).array, voxels)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    if compressed:
        with pytest.raises(UserError, match=f"^{path}: found damaged or truncated voxels.*; expected"):
            read_ct(path)
    else:  # without a checksum, a changed voxel cannot be detected
        assert (read_ct(path).array != voxels).sum() == 1


def test_a_negative_voxel_size_of_a_metaimage(tmp_path, write_volume):
    path = write_volume(tmp_path / "ct.mha", HU, spacing=(1, 2, 3))
    path.write_bytes(path.read_bytes().replace(b"ElementSpacing = 3 2 1", b"ElementSpacing = 3 -2 1"))
    with pytest.raises(UserError, match=f"^{path}: found voxels of 3×-2×1 mm; expected sizes above 0"):
        read_ct(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_other_formats_with_nan(tmp_path, write_volume, ending):
    values = HU.astype(np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="1 voxels are NaN or infinite; expected finite"):
        read_ct(write_volume(tmp_path / f"ct{ending}", values))


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("int16", "int16"), ("uint8", "uint8"), ("uint16", "uint16"), ("int32", "float32"), ("float64", "float32")],
)
def test_integers_are_kept_where_asked(tmp_path, write_volume, stored, kept):
    """Values are as stored, whichever type is returned."""
    values = np.abs(HU).astype(stored) % 200
    path = write_volume(tmp_path / "ct.nii.gz", values)
    for keep_integers, dtype in ((True, kept), (False, "float32")):
        ct = read_ct(path, keep_integers=keep_integers)
        assert ct.array.dtype == dtype
        np.testing.assert_array_equal(ct.array, values)


@pytest.mark.parametrize(
    ("value", "dtype", "num_classes"),
    [(2.5, np.float32, None), (-1, np.int16, None), (256, np.int32, None), (14, np.uint8, 14), (4, np.float64, 4)],
)
def test_values_that_are_no_labels(tmp_path, write_volume, value, dtype, num_classes):
    values = np.zeros(SHAPE, dtype)
    values[2, 1, 0] = value
    path = write_volume(tmp_path / "labels.nii.gz", values)
    highest = 255 if num_classes is None else num_classes - 1
    with pytest.raises(UserError, match=f"^{path}: found the label value {value}.*from 0 to {highest}"):
        read_labels(path, num_classes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_labels_of_any_type(tmp_path, write_volume, dtype):
    labels = read_labels(write_volume(tmp_path / "labels.nii.gz", LABELS.astype(dtype)), 14)
    assert labels.array.dtype == np.uint8
    np.testing.assert_array_equal(labels.array, LABELS)


@pytest.mark.parametrize("occupied", ["the folder is a file", "the file is a folder"])
def test_a_failed_write_leaves_nothing(tmp_path, write_volume, occupied):
    stored = read_ct(write_volume(tmp_path / "in" / "ct.nii.gz", HU)).stored
    output = tmp_path / "out"
    if occupied == "the folder is a file":
        output.write_text("kept")
    else:
        (output / "a.nii.gz" / "kept").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{output / 'a.nii.gz'}: could not be written"):
        write_labels(LABELS, output / "a.nii.gz", stored)
    assert output.read_text() == "kept" if output.is_file() else os.listdir(output) == ["a.nii.gz"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001"),
        ("a.b_0000.mha", "a.b"),
        ("a_0001.nrrd", "a_0001"),
        ("_0000_x.nii", "_0000_x"),
        ("_0000.nii.gz", "_0000"),
        ("b_0000.nii.bz2", "b"),
        ("b.NII.ZST", "b"),
        ("b.img.gz", "b"),
        ("b.DCM", "b"),
        ("b.IMA", "b"),
        ("1.2.840.113619.2.55", "1.2.840.113619.2.55"),
    ],
)
def test_case_names(tmp_path, file, name):
    assert case_name(tmp_path / file) == name


@pytest.mark.parametrize(
    ("file", "cases", "name"),
    [
        ("a_0000.nii.gz", {"a_0000"}, "a_0000"),
        ("a_0000.nii.gz", {"a_0000", "a"}, "a_0000"),
        ("a_0000.nii.gz", {"a"}, "a"),
        ("a_0000.nii.gz", set(), "a"),
        ("a.nii.gz", {"a_0000"}, "a"),
    ],
)
def test_names_of_label_maps(tmp_path, file, cases, name):
    assert label_name(tmp_path / file, cases) == name


def test_listing_a_folder(tmp_path):
    for name in ("b.nii.gz", "a.mha", "c.nrrd", "d.nii", ".123.e.nii.gz", "readme.txt", "f.nii.gz.part"):
        (tmp_path / name).touch()
    assert [path.name for path in list_volumes(tmp_path)] == ["a.mha", "b.nii.gz", "c.nrrd", "d.nii"]
    with pytest.raises(UserError, match="gone: no such folder"):
        list_volumes(tmp_path / "gone")


@pytest.mark.parametrize("spacing", [(0.005, 0.0007, 0.0007), (1000.0, 0.7, 0.7)], ids=["in metres", "metres apart"])
def test_a_ct_of_impossible_size_is_refused(tmp_path, write_volume, spacing):
    path = write_volume(tmp_path / "ct.nii.gz", np.repeat(HU, 2, axis=0), spacing=spacing)
    with pytest.raises(UserError, match=r"ct\.nii\.gz: is .* mm wide: found voxels of 0.*correct the voxel size"):
        read_ct(path)


def test_what_a_folder_holds(tmp_path, write_volume):
    """Every entry is a volume, is reported as unreadable, or is ignored."""
    write_volume(tmp_path / "a.nii.gz", HU).rename(tmp_path / "UPPER.NII.GZ")
    write_volume(tmp_path / "b.mha", HU)
    for name in ("c.mhd", "d.hdr", "readme.txt", ".hidden.mhd", "table.csv"):
        (tmp_path / name).touch()
    (tmp_path / "e" / "deeper").mkdir(parents=True)
    (tmp_path / "f.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (tmp_path / "g.nii.gz").symlink_to(tmp_path / "g.nii.gz")
    (tmp_path / "j").symlink_to(tmp_path / "folder that is gone")
    os.mkfifo(tmp_path / "h.nii.gz")
    os.close(os.open(os.fsencode(tmp_path) + b"/i\xff.nii.gz", os.O_CREAT))
    for name in ("IM1", "IM2"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    assert [path.name for path in list_volumes(tmp_path)] == ["UPPER.NII.GZ", "b.mha"]
    assert case_name(tmp_path / "UPPER.NII.GZ") == "UPPER"
    expected = {
        "c.mhd": "is not a supported format",
        "d.hdr": "is not a supported format",
        "/e": "is a folder without DICOM slices",
        "f.nii.gz": "is not a",
        "g.nii.gz": "is not a",
        "h.nii.gz": "is not a",
        "i?.nii.gz": "its name is not UTF-8",
        "j": "is not a regular file (a broken link",
        "IM1": "is one of 2 DICOM files",
    }
    for (name, said), message in zip(expected.items(), unreadable_volumes(tmp_path).values(), strict=True):
        assert f"{name}: {said}" in message
    with pytest.raises(UserError, match="is not a"):
        read_ct(tmp_path / "h.nii.gz")


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("shear", [1e-4, 0.1])
def test_sheared_directions_of_other_formats(tmp_path, write_volume, ending, shear):
    """A shear within rounding is accepted; any other is refused, since labels cannot be written on such a grid."""
    path = write_volume(tmp_path / f"ct{ending}", HU, spacing=(2, 2, 2))
    field, value = (
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 %g 0") if ending == ".mha" else (b"(2,0,0)", b"(2,%g,0)")
    )
    assert field in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(field, value % (shear if ending == ".mha" else 2 * shear), 1))
    if shear < 0.01:
        np.testing.assert_array_equal(read_ct(path).array, HU)
    else:
        with pytest.raises(UserError, match=f"^{path}: found axes that are not at right angles"):
            read_ct(path)


def test_names_that_look_the_same_are_the_same(tmp_path):
    """macOS stores an umlaut as two code points."""
    composed, decomposed = "J\u00fcrgen", "Ju\u0308rgen"
    assert composed != decomposed
    assert case_name(tmp_path / f"{composed}_0000.nii.gz") == case_name(tmp_path / f"{decomposed}.mha") == composed
    (tmp_path / decomposed).mkdir()
    assert case_name(tmp_path / decomposed) == composed


def test_what_cannot_be_looked_into_is_named_where_it_is_read(tmp_path, write_volume, monkeypatch):
    """A folder and a file without read permission, beside a valid CT."""
    write_volume(tmp_path / "sound.nii.gz", HU)
    (tmp_path / "private").mkdir()
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "IM1").write_bytes(bytes(128) + b"DICM")

    def refuse(method):
        def guarded(path, *arguments):
            if path.name in ("private", "IM1"):
                raise PermissionError(13, "Permission denied", str(path))
            return method(path, *arguments)

        return guarded

    for method in ("iterdir", "open"):
        monkeypatch.setattr(Path, method, refuse(getattr(Path, method)))
    assert [path.name for path in list_volumes(tmp_path)] == ["private", "series", "sound.nii.gz"]
    for name in ("private", "series"):
        with pytest.raises(UserError, match=f"^{tmp_path / name}: cannot be opened .Permission denied"):
            read_ct(tmp_path / name)


def replace_header(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("ending", "old", "new", "said"),
    [
        (".mha", b"ElementSpacing = 3 2 1\n", b"", "found no voxel size in its header"),
        (".nrrd", b"space directions: (3,0,0) (0,2,0) (0,0,1)\n", b"", "found no voxel size in its header"),
        (".mha", b"NDims = 3\n", b"NDims = 3\nDistanceUnits = cm\n", "found voxel sizes in cm"),
        (".nrrd", b"kinds:", b'space units: "cm" "cm" "cm"\nkinds:', "found voxel sizes in cm"),
        (".mha", b"ElementSpacing = 3 2 1\n", b"ElementSpacing = 3 nan 1\n", "found voxels of 3×nan×1 mm"),
    ],
)
def test_sizes_that_itk_takes_for_mm(tmp_path, write_volume, ending, old, new, said):
    path = write_volume(tmp_path / f"ct{ending}", HU, spacing=(1, 2, 3))
    replace_header(path, old, new)
    with pytest.raises(UserError, match=f"^{path}: {said}; expected"):
        read_ct(path)


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", b"NDims = 3\n", b"NDims = 3\nDistanceUnits = mm\n"),
        (".nrrd", b"kinds:", b'space units: "mm" "mm" "mm"\nkinds:'),
        (".nrrd", b"kinds:", b"units:=cm\nkinds:"),  # a key/value pair, not a field
    ],
)
def test_sizes_in_mm(tmp_path, write_volume, ending, old, new):
    path = write_volume(tmp_path / f"ct{ending}", HU, spacing=(1, 2, 3))
    replace_header(path, old, new)
    assert read_ct(path).spacing == pytest.approx((1, 2, 3)) and read_ct(path).warnings == ()


@pytest.mark.parametrize(
    ("ending", "old", "new"),
    [
        (".mha", b"TransformMatrix = 1 0 0 0 1 0 0 0 1\n", b""),
        (".nrrd", b"space: left-posterior-superior", b"space: scanner-xyz"),
        (".nrrd", b"space: left-posterior-superior", b"space dimension: 3"),
    ],
)
def test_a_header_without_an_orientation_is_warned_of(tmp_path, write_volume, ending, old, new):
    path = write_volume(tmp_path / f"ct{ending}", HU)
    replace_header(path, old, new)
    assert any("states no orientation" in warning for warning in read_ct(path).warnings)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_compressed_voxels_that_are_too_few(tmp_path, ending):
    """An intact stream with fewer voxels than the header states."""
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(HU), str(path), useCompression=True)
    sizes = (b"DimSize = 5 4 3", b"DimSize = 5 4 9") if ending == ".mha" else (b"sizes: 5 4 3", b"sizes: 5 4 9")
    replace_header(path, *sizes)
    with pytest.raises(UserError, match=f"^{path}: .*truncated"):
        read_ct(path)


@pytest.mark.parametrize("old", [b"CompressedData = True", b"ElementDataFile = LOCAL"])
def test_a_metaimage_that_says_it_is_compressed_in_another_spelling(tmp_path, old):
    """A truncated file is refused as in the usual spelling: missing voxels are never made up."""
    path = tmp_path / "ct.mha"
    sitk.WriteImage(sitk.GetImageFromArray(HU), str(path), useCompression=True)
    replace_header(path, old, old.replace(b"True", b"TRUE").replace(b"LOCAL", b"Local"))
    np.testing.assert_array_equal(read_ct(path).array, HU)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=f"^{path}: found damaged or truncated voxels"):
        read_ct(path)


def nrrd(voxels, encoding="gzip", endian="little", sizes="5 4 3", extra=b""):
    """An NRRD header without its terminating blank line."""
    kind = {"i": "int", "f": "float"}[voxels.dtype.kind] + (
        str(8 * voxels.dtype.itemsize) if voxels.dtype.kind == "i" else ""
    )
    lines = f"""NRRD0004
type: {kind}
dimension: {len(sizes.split())}
space: left-posterior-superior
sizes: {sizes}
space directions: (0.9,0,0) (0,0.7,0) (0,0,5)
endian: {endian}
encoding: {encoding}
space origin: (0,0,0)
"""
    return lines.encode() + extra


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("where", ["in one stream", "in two streams", "behind lines", "behind bytes"])
@pytest.mark.parametrize("dtype", ["i2", "f4"])
def test_compressed_voxels_wherever_they_lie(tmp_path, order, where, dtype):
    voxels = HU.astype(order + dtype)
    raw, path = voxels.tobytes(), tmp_path / "ct.nrrd"
    header = nrrd(voxels, endian="little" if order == "<" else "big")
    if where == "in one stream":
        path.write_bytes(header + b"\n" + gzip.compress(raw))
    elif where == "in two streams":
        path.write_bytes(header + b"\n" + gzip.compress(raw[:50]) + gzip.compress(raw[50:]))
    elif where == "behind lines":
        path.write_bytes(header + b"line skip: 2\n\none\ntwo\n" + gzip.compress(raw))
    else:
        path.write_bytes(header + b"byte skip: 7\n\n" + gzip.compress(b"7 bytes" + raw))
    ct = read_ct(path)
    np.testing.assert_array_equal(ct.array, HU)
    assert ct.spacing == pytest.approx((5, 0.7, 0.9))


@pytest.mark.parametrize(("ending", "data"), [(".mha", "ct.raw"), (".nrrd", "ct.raw"), (".nrrd", "ct.raw.gz")])
def test_voxels_in_another_file_are_refused(tmp_path, ending, data):
    """They would change without notice: only the file with the header is known to belong to the case."""
    path = tmp_path / f"ct{ending}"
    if ending == ".mha":
        sitk.WriteImage(sitk.GetImageFromArray(HU), str(tmp_path / "ct.mhd"))
        (tmp_path / "ct.mhd").rename(path)
    else:
        path.write_bytes(nrrd(HU, "gzip" if data.endswith(".gz") else "raw") + f"data file: {data}\n".encode())
    (tmp_path / data).write_bytes(gzip.compress(HU.tobytes()) if data.endswith(".gz") else HU.tobytes())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), HU)
    with pytest.raises(UserError, match=f"^{path}: found voxels in '{data}'; expected header and voxels in one file"):
        read_ct(path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("compressed", [True, False])
def test_a_fourth_dimension_of_one_voxel(tmp_path, ending, compressed):
    path = tmp_path / f"ct{ending}"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(HU)]), str(path), useCompression=compressed)
    assert sitk.ReadImage(str(path)).GetDimension() == 4
    np.testing.assert_array_equal(read_ct(path).array, HU)
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(HU)] * 2), str(path), useCompression=compressed)
    with pytest.raises(UserError, match=r"found 4 dimensions .5×4×3×2.; expected one 3-D volume"):
        read_ct(path)


@pytest.mark.parametrize(("value", "kept"), [(3.0000001, 3), (2.995, 3), (2.98, None)])
def test_labels_that_are_scaled(tmp_path, write_volume, value, kept):
    """Whole numbers that were scaled by a header are accepted up to rounding."""
    path = write_volume(tmp_path / "labels.nii.gz", np.full(SHAPE, value, np.float32))
    if kept:
        assert (read_labels(path, 4).array == kept).all()
    else:
        with pytest.raises(
            UserError, match=r"found the label value 2\.98; expected whole numbers .*; use the original label map"
        ):
            read_labels(path, 4)


@pytest.mark.parametrize(("values", "found"), [([0, 10, 5], "5, 10"), ([1, 256, -1], "-1, 256")])
def test_labels_with_gaps_need_names_not_another_interpolation(tmp_path, write_volume, values, found):
    path = write_volume(tmp_path / "labels.nii.gz", np.array(values, np.int16).reshape(1, 1, 3))
    with pytest.raises(UserError, match=rf"found the label value {found}; .* from 0 to 3; name all classes .*renumber"):
        read_labels(path, 4)


def phantom_hu():
    """A body of soft tissue, lung and bone in air."""
    hu = np.full((10, 40, 40), -1000.0)
    hu[:, 8:32, 5:35] = 40
    hu[:5, 12:28, 8:16] = -800
    hu[:, 18:22, 18:22] = 500
    return hu


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda hu: hu, None),
        (lambda hu: np.where(hu == -1000, -3024, hu), None),  # padded
        (lambda hu: hu + 1024, "lowest value is 24"),
        (lambda hu: np.where(hu == -1000, -2000, hu + 1024), "of all voxels outside air lie above 300"),
        (lambda hu: hu / 1000, "lowest value is -1"),
        (lambda hu: np.where(hu == 500, 65535, hu), "highest value is 65535"),
        (lambda hu: np.where(hu > -500, hu + 5000, hu), "0.0% of its voxels lie between"),
    ],
)
def test_values_that_are_hardly_hu(tmp_path, write_volume, change, said):
    warnings = read_ct(write_volume(tmp_path / "ct.nii.gz", change(phantom_hu()).astype(np.float32))).warnings
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]
