"""Read and write CTs: formats, geometry, orientation. Only this package uses the x, y, z order of files."""

from dlunet.volumes.dicom import is_series
from dlunet.volumes.files import (
    Volume,
    check_grid,
    count_labels,
    is_meant_as_volume,
    list_volumes,
    loose_slices,
    read_ct,
    read_labels,
    unreadable_volumes,
    write_image,
    write_labels,
)
from dlunet.volumes.geometry import Geometry
from dlunet.volumes.messages import times
from dlunet.volumes.names import case_name, file_stem, label_name

__all__ = [
    "Geometry",
    "Volume",
    "case_name",
    "check_grid",
    "count_labels",
    "file_stem",
    "is_meant_as_volume",
    "is_series",
    "label_name",
    "list_volumes",
    "loose_slices",
    "read_ct",
    "read_labels",
    "times",
    "unreadable_volumes",
    "write_image",
    "write_labels",
]
