"""The viewer of a page: CTs with label maps in three planes and 3-D, drawn by NiiVue in the reader's browser."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import from_numpy
from torch.nn.functional import avg_pool3d

from dlunet.labels import LabelSet
from dlunet.reporting.shown_cases import ShownCase

#: Volumes are shown in voxels of at most about this size, which keeps a page small.
VIEWED_MM = 3.0
#: HU are rounded to multiples of this, a hundredth of the abdominal window: noise hardly compresses.
HU_STEP = 4
#: The colours of voxels where a prediction differs from the reference: missed, added, or of another class.
DIFFERENCES = {"missed": "#ff1744", "added": "#ffea00", "other class": "#e040fb"}
#: NiiVue's bundle in the package ``ipyniivue``, and what it does with its class, whose name is shortened there.
PACKAGE, BUNDLE = "ipyniivue", "static/widget.js"
CREATION = re.compile(r'"Creating new Niivue instance"\).{0,200}?=new ([\w$]+)\(')
EXPORT = re.compile(r"export\s*\{[^}]*\};?\s*$")
#: What a page embeds of CTs and label maps at most, in bytes.
MOST_BYTES = 30_000_000


@dataclass(frozen=True)
class ViewedCase:
    """A case as embedded in a page.

    Attributes:
        name: Its name.
        caption: What is said of it, such as its DSC.
        image: The CT, a compressed NIfTI file in base64.
        maps: Label maps on the same voxels, likewise, by title.
    """

    name: str
    caption: str
    image: str
    maps: Mapping[str, str]

    @property
    def size(self) -> int:
        """Its bytes in the page."""
        return len(self.image) + sum(map(len, self.maps.values()))


class EmbeddedCases:
    """The cases in the viewer of a page: as many as keep it small; none without NiiVue.

    Attributes:
        cases: The cases that are embedded.
        left_out: The number of those that are not.
    """

    def __init__(self) -> None:
        self.cases: list[ViewedCase] = []
        self.left_out = 0
        self._room = MOST_BYTES

    def add(self, case: ShownCase) -> None:
        """Embed a case, unless there is no room left."""
        if self.left_out or bundle() is None:
            self.left_out += 1
            return
        volumes = _viewed(case)
        self._room -= volumes.size
        if self._room > 0:
            self.cases.append(volumes)
        else:
            self.left_out = 1

    @property
    def note(self) -> str | None:
        """Why cases are left out, if any are."""
        if not self.left_out:
            return None
        if bundle() is None:
            return "The viewer is left out: it needs NiiVue, which pip install 'dlunet[viewer]' adds."
        return f"The viewer has the first {len(self.cases)} cases: {self.left_out} are left out to keep the page small."

    def data(self, labels: LabelSet) -> dict[str, Any] | None:
        """What the viewer's template and script need; None without cases.

        The first label map of each case is the one that the others are compared with.
        """
        if not self.cases:
            return None
        titles = list(dict.fromkeys(title for case in self.cases for title in case.maps))
        return {
            "cases": [asdict(case) for case in self.cases],
            "maps": titles,
            "compared": len(titles) > 1,
            "labels": [{"id": label.id, "name": label.name, "color": label.color} for label in labels],
            "differences": DIFFERENCES,
            "voxel_size": VIEWED_MM,
        }


@cache
def bundle() -> str | None:
    """NiiVue as a JavaScript module that sets ``globalThis.Niivue``, compressed, in base64; None if not installed.

    The installed bundle is that of a notebook widget, which does not export NiiVue's class.
    """
    if find_spec(PACKAGE) is None:
        return None
    code = Path(str(files(PACKAGE))).joinpath(BUNDLE).read_text(encoding="utf-8")
    creation = CREATION.search(code)
    if creation is None or EXPORT.search(code) is None:
        return None
    code = EXPORT.sub(f"globalThis.Niivue={creation[1]};", code)
    return base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()


def _viewed(case: ShownCase) -> ViewedCase:
    """A case in voxels of about :data:`VIEWED_MM` where its own are smaller."""
    factors = [min(max(1, round(VIEWED_MM / mm)), n) for mm, n in zip(case.spacing, case.image.shape, strict=True)]
    spacing = [mm * factor for mm, factor in zip(case.spacing, factors, strict=True)]
    blocks = avg_pool3d(from_numpy(case.image.astype(np.float32))[None], factors)[0].numpy()
    hounsfield = (HU_STEP * (blocks / HU_STEP).round()).clip(-1024, 3071).astype(np.int16)
    # The middle voxel of each block; like the average, of complete blocks only.
    middle = tuple(slice(step // 2, step * size, step) for step, size in zip(factors, blocks.shape, strict=True))
    maps = {title: _as_nifti(array[middle], spacing) for title, array in case.maps.items() if array is not None}
    return ViewedCase(case.name, case.remark, _as_nifti(hounsfield, spacing), maps)


def _as_nifti(array: np.ndarray, spacing: Sequence[float]) -> str:
    """A canonical volume (z, y, x) as a compressed NIfTI file in base64."""
    z, y, x = spacing
    affine = np.diag([-x, -y, z, 1.0])  # canonical axes point to the left and back, NIfTI's to the right and front
    data = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine).to_bytes()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()
