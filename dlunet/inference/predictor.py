"""From CT files to label files, with a trained network."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dlunet.errors import UserError
from dlunet.files import write_text
from dlunet.inference.regrid import labels_on_grid
from dlunet.inference.sliding_window import Flips, stream_logits
from dlunet.labels import LabelSet
from dlunet.networks import Bundle
from dlunet.preparation import prepare_image
from dlunet.progress import progress_bar
from dlunet.volumes import Volume, case_name, is_series, list_volumes, read_ct, write_labels

logger = logging.getLogger(__name__)

#: Beside label maps: what they were made with.
RECORD = "prediction.json"


@dataclass(frozen=True)
class Predictor:
    """Segments CTs on their own grid.

    Attributes:
        bundle: The network with its plan and labels.
        step: Distance between tiles as a part of the patch.
        flips: Test-time flips, see :func:`dlunet.inference.predict_logits`.
        device: Where the network runs.
    """

    bundle: Bundle
    step: float = 0.5
    flips: Flips = "none"
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """What its labels depend on, besides the CT."""
        weights = hashlib.sha256()
        for tensor in self.bundle.network.state_dict().values():
            weights.update(tensor.cpu().numpy().tobytes())
        return {
            "weights": weights.hexdigest(),
            "labels": self.bundle.labels.to_dict(),
            "plan": self.bundle.plan.to_dict(),
            "step": self.step,
            "flips": self.flips,
        }

    def segment(self, volume: Volume) -> np.ndarray:
        """Labels (z, y, x), uint8, on the grid of a CT in canonical orientation."""
        prepared = torch.from_numpy(prepare_image(volume.array, volume.spacing, self.bundle.plan)).to(self.device)
        network = self.bundle.network.to(self.device)
        slabs = stream_logits(network, prepared, self.bundle.plan.patch_size, self.step, self.flips)
        return labels_on_grid(slabs, prepared.shape[1:], volume.array.shape)


def predict_files(predictor: Predictor, images: Sequence[Path], output: Path, replace: bool = False) -> None:
    """Segment CT files one by one; a case that already has its labels is skipped.

    Args:
        predictor: What segments.
        images: CT files.
        output: The folder for ``NAME.nii.gz`` a case and ``efficiency.csv`` (seconds a case).
        replace: Delete labels of another network or other settings instead of refusing the folder.

    Raises:
        UserError: Some case could not be segmented, and the others are done; or the folder holds labels of another
            network or other settings.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be made a folder ({error.strerror}); choose another output") from None
    names = [case_name(path) for path in images]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(
            f"several inputs are called {repeated[0]}: each case needs a name of its own, since labels go to "
            f"{output / repeated[0]}.nii.gz; rename one, or predict them into different folders"
        )
    _claim_folder(output, predictor.settings, dict(zip(names, images, strict=True)), replace)
    seconds = _read_seconds(output / "efficiency.csv")
    failures = []
    with progress_bar("segmenting", len(images)) as advance:
        for path in images:
            target = output / f"{case_name(path)}.nii.gz"
            if not target.exists():
                start = time.perf_counter()
                try:
                    volume = read_ct(path)
                    write_labels(predictor.segment(volume), target, volume.stored)
                    seconds[case_name(path)] = time.perf_counter() - start
                    _write_seconds(output / "efficiency.csv", seconds)
                except UserError as error:
                    logger.error("%s", error)
                    failures.append(path)
            advance()
    if failures:
        raise UserError(f"{len(failures)} of {len(images)} cases could not be segmented, see above: {failures[0]}, …")


def find_images(source: Path) -> list[Path]:
    """The CTs that an input names: a file, a folder of DICOM slices, or the CTs in a folder.

    Raises:
        UserError: It does not exist, or the folder holds no volume.
    """
    if source.is_file() or is_series(source):
        return [source]
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; expected a CT or a folder of CTs")
    images = list_volumes(source)
    if not images:
        raise UserError(f"{source}: holds no CT; expected .nii.gz, .nii, .mha or .nrrd files, or DICOM folders")
    return images


def predicted_labels(folder: Path) -> LabelSet | None:
    """The organs of the label maps that :func:`predict_files` wrote to a folder; None where something else wrote them.

    Raises:
        UserError: The folder's record is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return LabelSet.from_dict(_read_record(path)["labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not name the labels ({error}); give labels=dataset.json") from None


def _claim_folder(output: Path, settings: dict[str, Any], images: Mapping[str, Path], replace: bool) -> None:
    """Record what makes the labels in a folder, so that labels of another making are never kept as finished.

    Which CT each label map is of is recorded too: the report shows them together.
    """
    known: dict[str, str] = {}
    record = output / RECORD
    labels = list(output.glob("[!.]*.nii.gz"))
    if record.exists() and labels:
        found = _read_record(record)
        known = found.get("images", {})
        changed = [
            f"{key}: found {found.get(key)}, now {settings[key]}" for key in settings if found.get(key) != settings[key]
        ]
        if changed and replace:
            known = {}
            for path in labels:
                path.unlink()
        elif changed:
            raise UserError(
                f"{output}: holds labels made otherwise ({'; '.join(changed)}); choose another output, or empty it"
            )
    known = known | {name: str(path.resolve()) for name, path in images.items()}
    write_text(record, json.dumps({**settings, "images": known}, indent=2))


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); delete it together with the labels beside it") from None


def _read_seconds(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    with path.open(newline="") as lines:
        return {row["case"]: float(row["seconds"]) for row in csv.DictReader(lines)}


def _write_seconds(path: Path, seconds: dict[str, float]) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["case", "seconds"])
    rows.writerows([case, f"{value:.3f}"] for case, value in seconds.items())
    write_text(path, text.getvalue())
