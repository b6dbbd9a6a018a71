"""How messages speak of a volume: its size, its voxels, its grid, and what to do with its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlunet.errors import NotReadable, UserError
from dlunet.volumes.geometry import Geometry

#: What to do with a file whose header does not say where its voxels lie, or says so twice.
EXPORT_AGAIN = "expected a header that places the volume in the patient; export it again"

#: What to do with a damaged file.
COPY_AGAIN = "expected an intact file; copy it again, or export it again"


def times(numbers: Sequence[float | str]) -> str:
    """Sizes: ``512×512×130``."""
    return "×".join(f"{number:g}" if isinstance(number, float) else str(number) for number in numbers)


def not_one_volume(size: Sequence[int]) -> NotReadable:
    """What is wrong with a file of more or fewer than three axes."""
    return NotReadable(
        f"found {len(size)} dimensions ({times(size)}); expected one 3-D volume; export each volume to its own file"
    )


def not_scalar(values: int) -> NotReadable:
    """What is wrong with a file of several values a voxel."""
    return NotReadable(f"found {values} values per voxel; expected one; export a CT or label map")


def wrong_voxel_size(sizes: Sequence[float | str]) -> NotReadable:
    """What is wrong with a file whose voxels have no size; ``sizes`` as its header has them."""
    return NotReadable(f"found voxels of {times(sizes)} mm; expected sizes above 0; export it again")


def wrong_unit(unit: str) -> NotReadable:
    """What is wrong with a file whose voxel sizes are not in mm."""
    return NotReadable(f"found voxel sizes in {unit}; expected mm; export it again")


def other_geometry(path: Path, grid: Geometry, other_path: Path, other: Geometry, what_to_do: str) -> UserError:
    """The error for a label map that does not lie on the grid of another volume."""
    return UserError(
        f"{path}: geometry (size, spacing, orientation) differs from {other_path}: found {grid.differences(other)}; "
        f"{what_to_do}"
    )
