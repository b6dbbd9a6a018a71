"""Writes the page of predicted label maps: the volume of each class, the viewer, and a picture per case."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlunet.errors import UserError
from dlunet.files import write_text
from dlunet.inference.postprocessing import organ_volumes
from dlunet.labels import LabelSet
from dlunet.progress import progress_bar
from dlunet.reporting import EmbeddedCases, ShownCase, overlay_png, render
from dlunet.volumes import case_name, read_ct, read_labels

logger = logging.getLogger(__name__)

#: The page in the folder of label maps.
PAGE = "report.html"
#: The title of the label maps in the viewer.
TITLE = "prediction"


@dataclass(frozen=True)
class _Row:
    """A case in the page: the volume of each class in ml, and a picture as a data URI."""

    case: str
    volumes: Mapping[str, float]
    picture: str


def write_predictions_page(folder: Path, images: Sequence[Path], labels: LabelSet) -> Path:
    """Write ``report.html``, a self-contained page, beside label maps.

    Args:
        folder: The folder with the label map ``NAME.nii.gz`` of each CT; CTs without one are left out.
        images: The CTs.
        labels: The classes.

    Returns:
        The path of the page.

    Raises:
        UserError: The page cannot be written.
    """
    embedded = EmbeddedCases()
    rows = []
    for case in _read(folder, images):
        array = case.maps[TITLE]
        assert array is not None
        picture = base64.b64encode(overlay_png(case.image, array, case.spacing, labels)).decode()
        rows.append(_Row(case.name, organ_volumes(array, case.spacing, labels), f"data:image/png;base64,{picture}"))
        embedded.add(case)
    page = folder / PAGE
    values = {"rows": rows, "labels": labels, "viewer_data": embedded.data(labels), "note": embedded.note}
    write_text(page, render("predictions.html.j2", folder=folder.resolve().name, **values))
    return page


def _read(folder: Path, images: Iterable[Path]) -> Iterator[ShownCase]:
    pairs = [(image, target) for image in images if (target := folder / f"{case_name(image)}.nii.gz").exists()]
    with progress_bar("writing the page", len(pairs)) as advance:
        for image, target in pairs:
            try:
                volume = read_ct(image)
                yield ShownCase(case_name(image), "", volume.array, volume.spacing, {TITLE: read_labels(target).array})
            except UserError as error:
                logger.warning("warning: not in the page: %s", error)
            advance()
