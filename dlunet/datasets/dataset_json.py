"""Read ``dataset.json``, the dataset description of nnU-Net and the Medical Segmentation Decathlon (MSD)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dlunet.errors import UserError
from dlunet.labels import LabelSet, label_set

#: Label maps are uint8.
HIGHEST_ID = 255


def read_dataset_json(path: Path) -> dict[str, Any]:
    """The contents of a ``dataset.json`` that describes single-channel CTs.

    Raises:
        UserError: The file is missing, is not a dataset description, or does not describe a single CT channel.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the dataset.json that describes the dataset; check data.root")
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a JSON file; correct it") from None
    if not isinstance(values, dict) or not isinstance(values.get("labels"), dict):
        raise UserError(f"{path}: has no entry for labels; expected one such as "
                        '"labels": {"background": 0, "liver": 1}; add it')  # fmt: skip
    channels = values.get("channel_names") or values.get("modality") or {"0": "CT"}
    if not isinstance(channels, (dict, list)):
        channels = [channels]
    found = [str(name) for name in (channels.values() if isinstance(channels, dict) else channels)]
    if len(found) != 1 or "ct" not in found[0].lower().replace("spect", ""):
        raise UserError(
            f"{path}: found the channels {', '.join(found)}; expected one channel, CT; correct the entry if the images "
            "are CTs, or keep only the files of the CT"
        )
    return values


def labels_of(path: Path, values: dict[str, Any]) -> LabelSet:
    """The label set of a description: nnU-Net writes ``name: id``, the decathlon ``id: name``.

    Raises:
        UserError: An id is not a whole number, the ids have gaps, or regions or an ignore label are described.
    """
    names: dict[int, str] = {}
    for key, value in values["labels"].items():
        # Some tools write nnU-Net's ids as text, too.
        is_name = isinstance(value, str) and (key.isdecimal() or not value.isdecimal())
        id_, name = (key, value) if is_name else (value, key)
        if isinstance(id_, list):
            raise UserError(
                f"{path}: {name} is a region of the labels {id_}; expected one id per label; list them separately"
            )
        if str(name) == "ignore":
            raise UserError(
                f"{path}: has an ignore label ({id_}), which is not supported; expected every voxel to be labelled; "
                "use these cases as unlabelled ones instead"
            )
        if not str(id_).isdecimal():
            raise UserError(f"{path}: label {name!r} has the id {id_!r}; expected a whole number, 0 or more")
        if int(id_) in names:
            raise UserError(f"{path}: {names[int(id_)]!r} and {name!r} have the id {id_}; expected one label per id")
        names[int(id_)] = str(name)
    names.pop(0, None)
    if not names or max(names) > HIGHEST_ID:
        raise UserError(f"{path}: found the ids {sorted(names)}; expected 1, 2, …, at most {HIGHEST_ID}")
    try:
        return label_set(str(values.get("name", path.parent.name)), names)
    except ValueError as error:
        raise UserError(f"{path}: {error}; renumber the labels") from None
