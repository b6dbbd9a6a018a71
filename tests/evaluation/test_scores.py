"""DSC and NSD against closed forms, a brute-force computation, and FLARE22's official scores."""

import csv
import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from dlunet.errors import UserError
from dlunet.evaluation import OrganScore, dice_score, score_case, surface_dice
from dlunet.evaluation.metrics import hd95
from dlunet.evaluation.scores import measure_case
from dlunet.labels import FLARE22, Label, LabelSet
from dlunet.volumes import read_labels

REAL_CT = Path(__file__).parents[3] / "shared" / "data"
ORGANS = LabelSet("two", (Label(1, "Blob", "BL", "#ff0000", 2), Label(2, "Tube", "TB", "#00ff00", 2, tubular=True)))


def box(shape, start, size):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def box_surface(start, size, spacing):
    """Surface elements of a box: positions in mm and areas in mm², from geometry alone.

    There is one element per voxel corner on the surface: on a face the side of a voxel, on an edge the bevel, and on a
    box corner the triangle that connects the midpoints of the voxel's edges.
    """
    half = np.array(spacing) / 2
    points, areas = [], []
    for index in itertools.product(*(range(n + 1) for n in size)):
        outer = [axis for axis in range(3) if index[axis] in (0, size[axis])]
        inner = [axis for axis in range(3) if axis not in outer]
        if not outer:
            continue
        if len(outer) == 1:
            area = spacing[inner[0]] * spacing[inner[1]]
        elif len(outer) == 2:
            area = spacing[inner[0]] * np.hypot(*half[outer])
        else:
            area = 0.5 * np.sqrt(sum((half[a] * half[b]) ** 2 for a, b in itertools.combinations(range(3), 2)))
        points.append((np.array(start) + np.array(index)) * spacing)
        areas.append(area)
    return np.array(points), np.array(areas)


def brute_force_surface_dice(first, second, tolerance):
    (points_a, areas_a), (points_b, areas_b) = first, second
    distance = np.linalg.norm(points_a[:, None] - points_b[None], axis=-1)
    within = areas_a[distance.min(1) <= tolerance].sum() + areas_b[distance.min(0) <= tolerance].sum()
    return within / (areas_a.sum() + areas_b.sum())


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (5.0, 0.75, 0.75), (2.0, 1.0, 0.5)])
@pytest.mark.parametrize("shift", [(0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 3), (2, 1, 2)])
@pytest.mark.parametrize("tolerance", [0.4, 1.1, 2.6])
def test_surface_dice_of_two_boxes_equals_brute_force(spacing, shift, tolerance):
    shape, size, other_size = (12, 14, 16), (4, 5, 6), (5, 4, 6)
    start, other_start = (2, 2, 2), tuple(2 + s for s in shift)
    expected = brute_force_surface_dice(
        box_surface(start, size, spacing), box_surface(other_start, other_size, spacing), tolerance
    )
    found = surface_dice(box(shape, other_start, other_size), box(shape, start, size), spacing, tolerance)
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_is_forgiven_from_its_length_in_mm_on(axis):
    spacing = (5.0, 2.0, 0.75)
    shift = [0, 0, 0]
    shift[axis] = 2
    reference, prediction = box((16,) * 3, (4, 4, 4), (6, 6, 6)), box((16,) * 3, np.add(4, shift), (6, 6, 6))
    length = 2 * spacing[axis]
    assert surface_dice(prediction, reference, spacing, length) == 1
    assert surface_dice(prediction, reference, spacing, length - 0.01) < 1


def test_masks_at_the_volume_s_rim_have_a_closed_surface():
    whole = np.ones((4, 4, 4), dtype=bool)
    inner = box((6, 6, 6), (1, 1, 1), (4, 4, 4))
    assert surface_dice(whole, whole, (1, 1, 1), 0) == 1
    shifted = box((6, 6, 6), (2, 1, 1), (4, 4, 4))
    rim, rim_shifted = inner[1:, 1:5, 1:5], shifted[1:, 1:5, 1:5]
    assert surface_dice(rim_shifted, rim, (1, 1, 1), 0.5) == surface_dice(shifted, inner, (1, 1, 1), 0.5)


def test_dice_of_two_shifted_boxes():
    reference, prediction = box((8, 8, 8), (1, 1, 1), (4, 4, 4)), box((8, 8, 8), (2, 1, 1), (4, 4, 4))
    assert dice_score(prediction, reference) == 0.75
    assert dice_score(prediction, reference, (5.0, 1.0, 1.0)) == 0.75
    assert isinstance(dice_score(prediction, reference), float)


def test_empty_masks():
    empty, full = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)
    assert dice_score(empty, empty) == surface_dice(empty, empty, (1, 1, 1), 1) == 1
    for prediction, reference in ((empty, full), (full, empty)):
        assert dice_score(prediction, reference) == surface_dice(prediction, reference, (1, 1, 1), 1e9) == 0


def test_bad_arguments_are_quoted():
    mask = np.ones((3, 3, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"\(3, 3, 2\).*\(3, 3, 3\)"):
        dice_score(mask[..., :2], mask)
    with pytest.raises(ValueError, match=r"spacing \(1, 0, 1\)"):
        surface_dice(mask, mask, (1, 0, 1), 1)
    with pytest.raises(ValueError, match="3-D masks"):
        surface_dice(mask[0], mask[0], (1, 1, 1), 1)


def tube(start, stop, label=2):
    array = np.zeros((20, 8, 8), dtype=np.uint8)
    array[start:stop, 2:6, 2:6] = label
    return array


def test_a_tubular_organ_is_scored_on_the_reference_s_slices_without_the_last():
    prediction = tube(2, 18)
    prediction[14] = 0  # the reference's last slice, not scored
    prediction[5] = 0
    scores = score_case(prediction, tube(5, 15), (1, 1, 1), ORGANS)
    assert scores[1].dsc == round(2 * 8 / (8 + 9), 4)  # 9 of the 10 slices are scored, 8 of them found
    assert scores[0] == OrganScore("Blob", 1, 1)


def test_the_left_out_slice_is_the_last_as_the_file_stores_them():
    prediction = tube(2, 18)
    prediction[14] = 0
    assert score_case(prediction, tube(5, 15), (1, 1, 1), ORGANS)[1] == OrganScore("Tube", 1, 1)
    scores = score_case(prediction, tube(5, 15), (1, 1, 1), ORGANS, slices_descend=True)
    assert scores[1].dsc == round(2 * 8 / (8 + 9), 4)


def test_a_tubular_reference_of_one_slice_is_scored_on_it():
    assert score_case(tube(4, 9), tube(5, 6), (1, 1, 1), ORGANS)[1] == OrganScore("Tube", 1, 1)


def test_a_tubular_prediction_beyond_the_reference_s_slices_scores_0():
    assert score_case(tube(15, 18), tube(5, 15), (1, 1, 1), ORGANS)[1] == OrganScore("Tube", 0, 0)


def test_other_organs_are_scored_on_all_slices():
    assert score_case(tube(2, 18, 1), tube(5, 15, 1), (1, 1, 1), ORGANS)[0].dsc == round(2 * 10 / 26, 4)


@pytest.mark.parametrize(("slices", "counts"), [(1, False), (2, True)])
def test_nsd_is_0_where_dsc_is_below_a_fifth(slices, counts):
    reference, prediction = np.zeros((20, 12, 12), np.uint8), np.zeros((20, 12, 12), np.uint8)
    reference[1:17, 2:10, 2:10] = 1
    prediction[1 : 1 + slices, 2:10, 2:10] = 1
    score = score_case(prediction, reference, (1, 1, 1), ORGANS)[0]
    assert score.dsc == round(2 * slices / (16 + slices), 4)
    assert (score.nsd > 0) is counts
    assert surface_dice(prediction == 1, reference == 1, (1, 1, 1), 2) > 0


def test_a_background_prediction_scores_0_for_what_is_there_and_1_for_what_is_not():
    reference = np.zeros((6, 6, 6), np.uint8)
    reference[1:4, 1:4, 1:4], reference[4, 4, 4] = 1, 5
    for score, label in zip(score_case(np.zeros_like(reference), reference, (1, 1, 1)), FLARE22, strict=True):
        expected = 0 if label.id in (1, 5) else 1
        assert score == OrganScore(label.name, expected, expected)
    for score, label in zip(score_case(reference, np.zeros_like(reference), (1, 1, 1)), FLARE22, strict=True):
        assert score.dsc == score.nsd == (0 if label.id in (1, 5) else 1)


def test_scores_have_four_decimals():
    rng = np.random.default_rng(0)
    prediction, reference = (rng.integers(0, 3, (6, 7, 8)).astype(np.uint8) for _ in range(2))
    for _, dsc, nsd in score_case(prediction, reference, (1, 1, 1), ORGANS):
        assert (dsc, nsd) == (round(dsc, 4), round(nsd, 4))


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="shape"):
        score_case(np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), (1, 1, 1))


@pytest.mark.skipif(
    not (REAL_CT / "flare22_official_scores.csv").exists(),
    reason=f"the real CT is not in {REAL_CT}; nothing to compare",
)
def test_the_official_scores_of_a_real_ct():
    reference = read_labels(REAL_CT / "ct_abdomen_3mm_labels.nii.gz")
    prediction = read_labels(REAL_CT / "ct_abdomen_3mm_labels_other.nii.gz")
    with (REAL_CT / "flare22_official_scores.csv").open() as file:
        official = [(float(row["dsc"]), float(row["nsd"])) for row in csv.DictReader(file)]
    found = score_case(prediction.array, reference.array, reference.spacing)
    assert [(score.dsc, score.nsd) for score in found] == official


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 1.0, 0.8)])
def test_hd95_of_two_boxes_by_brute_force(spacing):
    shape, boxes = (20, 20, 20), (((3, 4, 5), (6, 7, 8)), ((5, 4, 4), (9, 8, 8)))
    found = hd95(*(box(shape, *corner) for corner in boxes), spacing)
    (first, areas_1), (second, areas_2) = (box_surface(*corner, spacing) for corner in boxes)
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    percentiles = []
    for nearest, areas in ((distances.min(1), areas_1), (distances.min(0), areas_2)):
        order = np.argsort(nearest)
        share = np.cumsum(areas[order]) / areas.sum()
        percentiles.append(nearest[order][np.searchsorted(share, 0.95)])
    assert found == pytest.approx(max(percentiles), abs=1e-6)
    assert found > 2


def test_further_metrics_are_those_of_the_scored_slices_and_have_no_value_where_an_organ_lacks():
    labels = LabelSet("two", (Label(1, "Tube", "T", "#000000", 1, tubular=True), Label(2, "Ball", "B", "#000000", 1)))
    reference, prediction = np.zeros((2, 8, 6, 6), np.uint8)
    reference[2:6, 2:4, 2:4], prediction[0:8, 2:4, 2:3] = 1, 1
    prediction[0, 5, 5] = 2

    def voxels(predicted, expected, spacing):
        assert spacing == (3, 2, 1)
        return 100 * predicted.sum() + expected.sum()

    def texts(predicted, expected, spacing):
        return "many"

    with pytest.raises(UserError, match=r"^metrics: texts failed for Tube .ValueError: .*; expected a number"):
        measure_case(prediction, reference, (3, 2, 1), [texts], labels)
    values = measure_case(prediction, reference, (3, 2, 1), [voxels], labels)
    assert values[0] == (100 * 6 + 12,)  # three of the reference's four slices
    assert math.isnan(values[1][0])
