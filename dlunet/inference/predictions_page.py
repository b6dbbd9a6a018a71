"""Writes the page of predicted label maps: the volume of each class, the viewer, and a picture per case."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlunet.errors import UserError, few
from dlunet.files import write_text
from dlunet.inference.output_folder import OutputFolder
from dlunet.inference.postprocessing import organ_volumes
from dlunet.labels import LabelSet
from dlunet.progress import progress_bar
from dlunet.reporting import EmbeddedCases, ShownCase, overlay_png, render
from dlunet.reporting.figures import data_uri
from dlunet.volumes import case_name, read_ct, read_labels

logger = logging.getLogger(__name__)

#: The page in the folder of label maps.
PAGE = "report.html"
#: The title of the label maps in the viewer.
TITLE = "prediction"
#: What the page embeds of pictures at most, in bytes.
MOST_PICTURES = 6_000_000


@dataclass(frozen=True)
class _Row:
    """A case in the page: the volume of each class in ml, and a picture as a data URI, or None."""

    case: str
    volumes: Mapping[str, float]
    picture: str | None


def write_predictions_page(folder: Path, images: Sequence[Path], labels: LabelSet) -> Path:
    """Write ``report.html``, a self-contained page, beside label maps.

    It names the CTs that it lacks, and has the warnings that were recorded with the label maps.

    Args:
        folder: The folder with the label map ``NAME.nii.gz`` of each CT; CTs without one are left out.
        images: The CTs.
        labels: The classes.

    Returns:
        The path of the page.

    Raises:
        UserError: The page cannot be written.
    """
    embedded, room = EmbeddedCases(labels), MOST_PICTURES
    rows: list[_Row] = []
    pairs = [(image, target) for image in images if (target := folder / f"{case_name(image)}.nii.gz").exists()]
    with progress_bar("writing the page", len(pairs)) as advance:
        for image, target in pairs:
            try:
                rows.append(_row(image, target, labels, embedded, with_picture=room > 0))
                room -= len(rows[-1].picture or "")
            except UserError as error:
                logger.warning("warning: not in the page: %s", error)
            advance()
    pictured = sum(row.picture is not None for row in rows)
    notes = [embedded.note] if embedded.note else []
    notes += [f"The first {pictured} of {len(rows)} cases have a picture."] if pictured < len(rows) else []
    values = {"rows": rows, "labels": labels, "viewer_data": embedded.data(), "notes": notes}
    values |= {"cts": len(images), "viewed": [case.name for case in embedded.cases]}
    shown, output = {row.case for row in rows}, OutputFolder(folder)
    values["absent"] = few([name for image in images if (name := case_name(image)) not in shown])
    warnings = output.warnings() if output.record.exists() else {}
    values["warnings"] = {case: messages for case, messages in warnings.items() if case in shown}
    page = folder / PAGE
    write_text(page, render("predictions.html.j2", folder=folder.resolve().name, **values))
    return page


def _row(image: Path, target: Path, labels: LabelSet, embedded: EmbeddedCases, with_picture: bool) -> _Row:
    """A case in the page; it is embedded while there is room. Its CT, which takes most of the time, is read only then.

    Raises:
        UserError: The label map, or the CT if it is needed, cannot be read.
    """
    label_map, name, picture = read_labels(target, labels.num_classes), case_name(image), None
    if with_picture or embedded.has_room:
        ct = read_ct(image)
        embedded.add(ShownCase(name, "", ct.array, ct.spacing, None, {TITLE: label_map.array}))
        if with_picture:
            picture = data_uri(overlay_png(ct.array, label_map.array, ct.spacing, labels))
    else:
        embedded.left_out += 1
    return _Row(name, organ_volumes(label_map.array, label_map.spacing, labels), picture)
