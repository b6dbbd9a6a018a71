"""NIfTI headers: read as nibabel reads them, or refused with a reason."""

import gzip
import re
import struct

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlunet.errors import UserError
from dlunet.volumes import read_ct, read_labels, write_labels
from dlunet.volumes.nifti import NO_ORIENTATION

SHAPE = (5, 4, 3)
VOXELS = np.random.default_rng(0).integers(0, 100, SHAPE)
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def affine_of(axes=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.5, 2.0), origin=(-7.0, 3.0, 11.0), turn=0.0, shear=0.0):
    """A NIfTI affine (RAS): voxel axis k runs along patient axis ``axes[k]``, then all are rotated about z."""
    matrix = np.zeros((3, 3))
    for k, (axis, sign, mm) in enumerate(zip(axes, signs, spacing, strict=True)):
        matrix[axis, k] = sign * mm
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ matrix
    matrix[:, 0] += shear * spacing[0] / spacing[1] * matrix[:, 1]
    return np.block([[matrix, np.array(origin)[:, None]], [np.zeros(3), 1]])


def places_of(volume):
    """World coordinates (RAS) of a canonical array's voxels, (z, y, x, 3), from its stored grid."""
    stored = volume.stored
    index = np.stack(np.indices(stored.size), -1)
    lps = index @ (np.array(stored.direction).reshape(3, 3) * stored.spacing).T + stored.origin
    by_axis = [stored.to_canonical(lps[..., k].transpose()) for k in range(3)]
    return np.stack(by_axis, -1) * (-1, -1, 1)


def check_against_nibabel(path, tolerance=0.1):
    """Every voxel has nibabel's value and, to within ``tolerance`` of a voxel, nibabel's position."""
    volume, theirs = read_ct(path), nib.load(path)
    values = np.asarray(theirs.dataobj, np.float64).reshape(theirs.shape[:3])
    homogeneous = np.append(places_of(volume), np.ones((*volume.array.shape, 1)), axis=-1)
    exact = (homogeneous @ np.linalg.inv(theirs.affine).T)[..., :3]
    index = np.rint(exact).astype(int)
    assert np.abs(exact - index).max() <= tolerance
    np.testing.assert_array_equal(volume.array, values[tuple(np.moveaxis(index, -1, 0))].astype(np.float32))
    assert (np.diff(places_of(volume)[..., 2].mean((1, 2))) > 0).all()  # z increases towards superior


def save(path, header):
    """Write :data:`VOXELS` with the header unchanged; nibabel's own writer would correct it."""
    header["vox_offset"] = header.single_vox_offset
    voxels = VOXELS.astype(header.get_data_dtype())
    path.write_bytes(header.binaryblock + bytes(4) + voxels.tobytes(order="F"))
    return path


forms = st.fixed_dictionaries(
    {},
    optional={
        "axes": st.permutations([0, 1, 2]),
        "signs": st.tuples(*[st.sampled_from([-1, 1])] * 3),
        "spacing": st.tuples(*[st.floats(0.3, 8)] * 3),
        "origin": st.tuples(*[st.floats(-500, 500)] * 3),
        "turn": st.sampled_from([0.0, 0.0, 1.0, 20.0, 44.0]),
        "shear": st.sampled_from([0.0, 0.0, 1e-4, 1e-3, 0.3]),
    },
)


@settings(deadline=None)  # 100 headers; `make test-full` draws 2,000
@given(
    form=forms,
    other=st.none() | forms,
    codes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    dtype=st.sampled_from(DTYPES),
    scale=st.tuples(
        st.sampled_from([1.0, 0.0, 2.0, 0.5, -1.0, np.nan]), st.sampled_from([0.0, -1024.0, 0.25, np.nan, np.inf])
    ),
    kind=st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
    big_endian=st.booleans(),
)
def test_a_header_means_what_nibabel_says_or_is_refused(
    tmp_path_factory, form, other, codes, dtype, scale, kind, big_endian
):
    path = tmp_path_factory.getbasetemp() / "header.nii"
    header = kind.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(SHAPE)
    header.set_qform(affine_of(**form), codes[0], strip_shears=True)
    header.set_sform(affine_of(**(form if other is None else other)), codes[1])
    header["scl_slope"], header["scl_inter"] = scale
    save(path, header)
    try:
        volume = read_ct(path)
    except UserError as error:
        assert re.search(
            r"right angles|sform and qform differ|sform has voxels|invalid intercept|mm wide|no length", str(error)
        )
        # Forms that agree are only refused for a large shear or an invalid intercept.
        assert other is not None or form.get("shear") == 0.3 or not np.isfinite(scale[1])
        return
    assert (NO_ORIENTATION in volume.warnings) == (codes == (0, 0))
    check_against_nibabel(path)


def write(path, affine=None, kind=nib.Nifti1Image, dtype="int16", sform=None, qform_code=1, sform_code=1, scale=(1, 0)):
    affine = affine_of() if affine is None else affine
    header = kind.header_class()
    header.set_data_dtype(dtype)
    header.set_data_shape(SHAPE)
    header.set_qform(affine, qform_code, strip_shears=True)
    header.set_sform(affine if sform is None else sform, sform_code)
    header["scl_slope"], header["scl_inter"] = scale
    return save(path, header)


@pytest.mark.parametrize("shear", [1e-4, 1e-3])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_shear_from_rounding_is_taken_and_labels_lie_on_the_ct(tmp_path, kind, shear):
    path = write(tmp_path / "ct.nii", affine_of(turn=10, shear=shear), kind, qform_code=0)
    check_against_nibabel(path)
    write_labels(np.uint8(read_ct(path).array), tmp_path / "labels.nii.gz", read_ct(path).stored)
    ours, theirs = nib.load(tmp_path / "labels.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    corner = np.array([*SHAPE, 1]) - 1
    assert np.abs(np.linalg.inv(theirs.affine) @ (ours.affine - theirs.affine) @ corner).max() < 0.1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"affine": affine_of(shear=0.2), "qform_code": 0}, "not at right angles .sheared: voxels lie up to"),
        ({"sform": affine_of(shear=0.2)}, "not at right angles .sheared"),
        ({"sform": affine_of(signs=(-1, 1, 1))}, "sform and qform differ: sform has origin in mm"),
        ({"sform": affine_of(axes=(1, 0, 2))}, "sform and qform differ: sform has size 4×5×3 .qform 5×4×3"),
        ({"sform": affine_of(turn=3)}, "sform and qform differ: sform has directions"),
        ({"sform": affine_of(origin=(-7, 3.3, 11))}, r"origin in mm 7, -3\.3, 11 .qform 7, -3, 11"),
        ({"sform": affine_of(spacing=(1, 1.5, 2.2)), "qform_code": 0}, r"sform has voxels of 1×1\.5×2\.2 mm"),
        ({"sform": np.zeros((4, 4)), "qform_code": 0}, "axes that are not finite or have no length"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, fields, said):
    path = write(tmp_path / "ct.nii", **fields)
    for read in (read_ct, read_labels):
        with pytest.raises(UserError, match=f"^{path}: found .*{said}.*; expected"):
            read(path)


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({"sform": affine_of(spacing=(1, 1.5, 2 + 1e-5))}, affine_of()),
        ({"sform": affine_of(origin=(-9, 3, 11)), "qform_code": 0}, affine_of(origin=(-9, 3, 11))),
        ({"sform": affine_of(origin=(-9, 3, 11)), "sform_code": 0}, affine_of()),
    ],
)
def test_the_form_that_counts(tmp_path, fields, right):
    volume = read_ct(write(tmp_path / "ct.nii", **fields))
    first = np.append(places_of(volume)[0, -1, -1], 1)  # stored axes increase towards right and anterior
    np.testing.assert_allclose(np.linalg.inv(right) @ first, [0, 0, 0, 1], atol=1e-3)


def test_a_header_without_an_orientation_is_read_as_nibabel_reads_it_with_a_warning(tmp_path):
    path = write(tmp_path / "ct.nii", qform_code=0, sform_code=0)
    assert NO_ORIENTATION in read_ct(path).warnings
    check_against_nibabel(path)


@pytest.mark.parametrize("scale", [(0, -1024), (np.nan, -1024), (2, -1024), (-1, 0), (1, 0.5)])
def test_scaling_is_nibabel_s(tmp_path, scale):
    path = write(tmp_path / "ct.nii", scale=scale)
    check_against_nibabel(path)


def test_what_follows_the_voxels_does_not_matter(tmp_path):
    """NaN after the voxels, bytes after the gzip stream, and a file of several gzip streams."""
    plain = write(tmp_path / "ct.nii", dtype="float32")
    content = plain.read_bytes()
    values = read_ct(plain).array
    more = content + np.full(500, np.nan, np.float32).tobytes()
    variants = {
        "longer.nii": more,
        "longer.nii.gz": gzip.compress(more),
        "garbage.nii.gz": gzip.compress(content) + b"\x00\x01garbage",
        "zeros.nii.gz": gzip.compress(content) + bytes(512),
        "parts.nii.gz": b"".join(gzip.compress(content[k : k + 100]) for k in range(0, len(content), 100)),
        "plain.nii.gz": content,
        "packed.nii": gzip.compress(content),
    }
    for name, variant in variants.items():
        (tmp_path / name).write_bytes(variant)
        np.testing.assert_array_equal(read_ct(tmp_path / name).array, values, err_msg=name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[:-9], "truncated"),
        (lambda raw: raw[: len(raw) // 2], "truncated"),
        (lambda raw: raw[:-6] + b"\x55" + raw[-5:], "checksum"),
        (lambda raw: raw[:200], "truncated|cannot be read as a volume"),
        (lambda raw: b"", "cannot be read as a volume"),
        (lambda raw: bytes(1000), "cannot be read as a volume"),
    ],
)
def test_a_damaged_gzip_file(tmp_path, change, said):
    path = tmp_path / "ct.nii.gz"
    raw = gzip.compress(write(tmp_path / "ct.nii", dtype="float64").read_bytes())
    path.write_bytes(change(raw))
    with pytest.raises(UserError, match=f"^{path}: .*({said}).*; expected"):
        read_ct(path)


@pytest.mark.parametrize("offset", [0, 348, 351])
def test_voxels_that_begin_within_the_header(tmp_path, offset):
    path = write(tmp_path / "ct.nii")
    content = bytearray(path.read_bytes())
    content[108:112] = struct.pack("<f", offset)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"vox.offset {offset}"):
        read_ct(path)


def test_a_header_that_asks_for_more_than_there_is_memory(tmp_path):
    path = write(tmp_path / "ct.nii")
    content = bytearray(path.read_bytes())
    content[40:48] = struct.pack("<4h", 3, 32767, 32767, 32767)
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated file"):
        read_ct(path)


@pytest.mark.parametrize(("unit", "said"), [("mm", None), ("unknown", None), ("micron", "micron"), ("meter", "meter")])
def test_voxel_sizes_in_other_units(tmp_path, unit, said):
    path = write(tmp_path / "ct.nii")
    header = nib.Nifti1Header(path.read_bytes()[:348])
    header.set_xyzt_units(unit)
    save(path, header)
    if said is None:
        check_against_nibabel(path)
    else:
        with pytest.raises(UserError, match=f"^{path}: found voxel sizes in {said}; expected mm; export it again"):
            read_ct(path)


@pytest.mark.parametrize(("turn", "taken"), [(180.0, True), (179.95, True), (179.5, False), (0.3, False)])
def test_a_qform_is_as_exact_as_its_quaternion(tmp_path, turn, taken):
    """Its first component is not stored: close to 0, the other three determine it only to sqrt(2^-23)."""
    shape, path = (400, 400, 3), tmp_path / "ct.nii"
    header = nib.Nifti1Header()
    header.set_data_dtype("uint8")
    header.set_data_shape(shape)
    header.set_qform(affine_of(turn=180 if taken else 0 if turn < 90 else 180), 1)
    header.set_sform(affine_of(turn=turn), 1)
    header["vox_offset"] = 352
    path.write_bytes(header.binaryblock + bytes(4 + 400 * 400 * 3))
    if taken:
        check_against_nibabel(path)  # which uses the sform
    else:
        with pytest.raises(UserError, match="sform and qform differ"):
            read_ct(path)
