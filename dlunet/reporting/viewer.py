"""The viewer of a page: CTs with label maps in three planes and 3-D, drawn by NiiVue in the reader's browser."""

from __future__ import annotations

import base64
import gzip
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import from_numpy
from torch.nn.functional import avg_pool3d

from dlunet.labels import LabelSet
from dlunet.reporting.shown_cases import ShownCase

#: Volumes of smaller voxels, up to two thirds of this, are shown in voxels of about this size, to keep a page small.
VIEWED_MM = 3.0
#: HU are rounded to multiples of this, a hundredth of the abdominal window: noise hardly compresses.
HU_STEP = 4
#: The colours of voxels where a prediction differs from the reference: missed, added, or of another class.
DIFFERENCES = (("missed", "#ff1744"), ("added", "#ffea00"), ("other class", "#e040fb"))
#: NiiVue's bundle in the package ``ipyniivue``, and what it does with its class, whose name is shortened there.
PACKAGE, BUNDLE = "ipyniivue", "static/widget.js"
CREATION = re.compile(r'"Creating new Niivue instance"\).{0,200}?=new ([\w$]+)\(')
EXPORT = re.compile(r"export\s*\{[^}]*\};?\s*$")
EXTRA = "'dlunet[viewer]'"
#: What a page embeds of CTs and label maps at most, in bytes.
MOST_BYTES = 30_000_000


@dataclass(frozen=True)
class ViewedCase:
    """A case as embedded in a page: compressed NIfTI files in base64, all on the same voxels.

    Attributes:
        name: Its name.
        caption: What is said of it, such as its DSC.
        image: The CT.
        reference: The reference, or None.
        predictions: The predictions in the order of their titles; None where there is none.
    """

    name: str
    caption: str
    image: str
    reference: str | None
    predictions: tuple[str | None, ...]

    @property
    def size(self) -> int:
        """Its bytes in the page."""
        return sum(len(volume) for volume in (self.image, self.reference, *self.predictions) if volume)


class EmbeddedCases:
    """The cases in the viewer of a page: as many as keep it small; none without NiiVue.

    Attributes:
        cases: The cases that are embedded.
        left_out: The number of those that are not; who does not add a case that has no room counts it here.
        titles: The titles of the predictions.

    Args:
        labels: The classes; voxels of other values are shown as background.
    """

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.cases: list[ViewedCase] = []
        self.left_out = 0
        self.titles: tuple[str, ...] = ()
        self._room = MOST_BYTES

    @property
    def has_room(self) -> bool:
        """Whether a further case may be embedded."""
        return bundle() is not None and self._room > 0

    def add(self, case: ShownCase) -> None:
        """Embed a case, if there is room for it. All cases have predictions with the same titles.

        The first case that does not fit any more ends the viewer; one too large for any page is only left out.
        """
        self.titles = tuple(case.predictions)
        viewed = _viewed(case, self.labels.num_classes) if self.has_room else None
        if viewed is not None and viewed.size <= self._room:
            self._room -= viewed.size
            self.cases.append(viewed)
            return
        self.left_out += 1
        if viewed is not None and viewed.size <= MOST_BYTES:
            self._room = 0

    @property
    def note(self) -> str | None:
        """Why cases are left out, if any are."""
        if not self.left_out:
            return None
        if bundle() is None:
            return f"The viewer is left out: it needs NiiVue, as {PACKAGE} has it; add it with: pip install {EXTRA}"
        return f"The viewer has {len(self.cases)} of {len(self.cases) + self.left_out} cases, to keep the page small."

    def data(self) -> dict[str, Any] | None:
        """What the viewer's template and script need; None without cases."""
        if not self.cases:
            return None
        return {
            "cases": [asdict(case) for case in self.cases],
            "titles": self.titles,
            "labels": [{"id": label.id, "name": label.name, "color": label.color} for label in self.labels],
            "differences": DIFFERENCES,
        }


@cache
def bundle() -> str | None:
    """NiiVue as a script that sets ``globalThis.Niivue``, compressed, in base64; None if it is not installed.

    The installed bundle is that of a notebook widget, which does not export NiiVue's class.
    """
    package = find_spec(PACKAGE)
    path = Path(*package.submodule_search_locations, BUNDLE) if package and package.submodule_search_locations else None
    if path is None or not path.is_file():
        return None
    code = path.read_text(encoding="utf-8")
    creation = CREATION.search(code)
    if creation is None or EXPORT.search(code) is None:
        return None
    code = EXPORT.sub(f"globalThis.Niivue={creation[1]};", code)
    return base64.b64encode(gzip.compress(code.encode(), mtime=0)).decode()


def _viewed(case: ShownCase, num_classes: int) -> ViewedCase:
    """A case in voxels of about :data:`VIEWED_MM` where its own are smaller."""
    factors = [min(max(1, round(VIEWED_MM / mm)), n) for mm, n in zip(case.spacing, case.image.shape, strict=True)]
    spacing = [mm * factor for mm, factor in zip(case.spacing, factors, strict=True)]
    blocks = avg_pool3d(from_numpy(np.asarray(case.image, np.float32))[None], factors)[0].numpy()
    hounsfield = (HU_STEP * (blocks / HU_STEP).round()).clip(-1024, 3071).astype(np.int16)
    # The middle voxel of each block; like the average, of complete blocks only.
    middle = tuple(slice(step // 2, step * size, step) for step, size in zip(factors, blocks.shape, strict=True))
    maps = [case.reference, *case.predictions.values()]
    chosen = [None if array is None else array[middle] for array in maps]
    reference, *predictions = (
        None if array is None else _as_nifti(np.where(array < num_classes, array, 0), spacing) for array in chosen
    )
    return ViewedCase(case.name, case.remark, _as_nifti(hounsfield, spacing), reference, tuple(predictions))


def _as_nifti(array: np.ndarray, spacing: Sequence[float]) -> str:
    """A canonical volume (z, y, x) as a compressed NIfTI file in base64."""
    z, y, x = spacing
    affine = np.diag([-x, -y, z, 1.0])  # canonical axes point to the left and back, NIfTI's to the right and front
    data = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine).to_bytes()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()
