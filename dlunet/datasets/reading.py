"""Read a case and check that it is fit for training."""

from __future__ import annotations

from dlunet.datasets.cases import Case
from dlunet.errors import UserError
from dlunet.volumes import Volume, check_grid, read_ct, read_labels


def read_case(case: Case, num_classes: int) -> tuple[Volume, Volume | None]:
    """Read a CT and its labels or, for an unlabelled case, its pseudo-labels, if it has any.

    Raises:
        UserError: A file cannot be read, the CT is constant, a label is unknown, or the two grids differ.
    """
    image = read_ct(case.image)
    if image.array.min() == image.array.max():
        raise UserError(
            f"{case.image}: all voxels are {image.array.flat[0]:g}; expected a CT in Hounsfield units; export it again"
        )
    path = case.label or case.pseudo_label
    if path is None:
        return image, None
    label = read_labels(path, num_classes)
    check_grid(path, label, case.image, image, "resample the labels to the CT")
    return image, label
