"""Wording of messages about volumes: size, voxels, grid, and what to do with the file."""

from __future__ import annotations

from collections.abc import Sequence

from dlunet.errors import NotReadable

#: Advice for a file whose header gives no position of its voxels, or contradictory ones.
EXPORT_AGAIN = "expected a header that places the volume in the patient; export it again"

#: Advice for a damaged file.
COPY_AGAIN = "expected an intact file; copy it again, or export it again"


def times(numbers: Sequence[float | str]) -> str:
    """Format sizes: ``512×512×130``."""
    return "×".join(f"{number:g}" if isinstance(number, float) else str(number) for number in numbers)


def not_one_volume(size: Sequence[int]) -> NotReadable:
    """The error for a file with more or fewer than three axes."""
    return NotReadable(
        f"found {len(size)} dimensions ({times(size)}); expected one 3-D volume; export each volume to its own file"
    )


def not_scalar(values: int) -> NotReadable:
    """The error for a file with several values per voxel."""
    return NotReadable(f"found {values} values per voxel; expected one; export a CT or label map")


def wrong_voxel_size(sizes: Sequence[float | str]) -> NotReadable:
    """The error for a file with invalid voxel sizes; ``sizes`` as stated in its header."""
    return NotReadable(f"found voxels of {times(sizes)} mm; expected sizes above 0; export it again")


def wrong_unit(unit: str) -> NotReadable:
    """The error for a file whose voxel sizes are not in mm."""
    return NotReadable(f"found voxel sizes in {unit}; expected mm; export it again")
