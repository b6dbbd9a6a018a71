"""Exports a trained network for another engine: a folder that ``predict`` accepts as a checkpoint.

It contains the model and ``dlunet.json``: the checkpoint's description and the checksum of each file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dlunet.errors import UserError, WriteError
from dlunet.files import TEMPORARY, remove_leftovers, write_bytes, write_text
from dlunet.inference.graphs import graph_of, why_no_graph
from dlunet.networks import Bundle, load_bundle, read_description, save_safetensors

DESCRIPTION = "dlunet.json"

#: The model file of each format; further files of the model are beside it.
MODELS = {"onnx": "model.onnx", "openvino": "model.xml", "safetensors": "model.safetensors"}


@dataclass(frozen=True)
class Export:
    """An exported network: its format, its model file, and the bundle with the remaining checkpoint contents."""

    format: str
    model: Path
    bundle: Bundle


def export_bundle(bundle: Bundle, form: str, folder: Path) -> None:
    """Write a network as ``onnx``, ``openvino`` or ``safetensors`` to a folder, with its plan and labels.

    It replaces an earlier export in the folder, once it is complete, and no other file.

    Raises:
        UserError: The format is unknown, its packages are missing, the folder cannot be written, or it has a file of
            the same name that is not of an export.
    """
    if form not in MODELS:
        raise UserError(f"format: found {form}; expected one of {', '.join(MODELS)}")
    if form != "safetensors" and (reason := why_no_graph(bundle.network)):
        raise UserError(f"format={form}: {reason}; expected format=safetensors")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        with TemporaryDirectory(prefix=f"{TEMPORARY}{os.getpid()}.", dir=folder) as temporary:
            _WRITERS[form](bundle, Path(temporary) / MODELS[form])
            made = sorted(Path(temporary).iterdir())
            files = {path.name: _checksum(path) for path in made}
            _replace_earlier_export(folder, made)
    except ImportError as error:
        extra = "onnx" if form == "onnx" else "openvino"
        raise UserError(f"format={form}: {error.name} is not installed; pip install 'dlunet[{extra}]'") from None
    except OSError as error:
        raise WriteError.of(folder, error) from None
    about = {**bundle.description, "digest": bundle.digest, "model_format": form, "files": files}
    write_text(folder / DESCRIPTION, json.dumps(about, indent=2))


def _replace_earlier_export(folder: Path, made: Sequence[Path]) -> None:
    """Move the files of a model into a folder, and remove those of an earlier export, which has no valid checksum now.

    Raises:
        UserError: A file of the same name is not of an earlier export.
    """
    try:
        earlier = {Path(name).name for name in json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        earlier = set()
    for path in made:
        if path.name not in earlier and (folder / path.name).exists():
            raise UserError(
                f"{folder / path.name}: is of no export in this folder, and would be replaced; choose another output, "
                "or move it away"
            )
    for name in earlier - {path.name for path in made}:
        (folder / name).unlink(missing_ok=True)
    for path in made:
        path.replace(folder / path.name)


def read_export(folder: Path) -> Export:
    """Read an exported folder and check its files.

    Raises:
        UserError: A file is missing, damaged, of a newer version, or not from DLUNet.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(
            f"{folder}: is not an exported network: {DESCRIPTION} is missing; expected a folder from `dlunet export`"
        )
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        plan, labels = read_description(about)
        form, digest, files = about["model_format"], str(about["digest"]), dict(about["files"])
        model = folder / MODELS[form]
        if model.name not in files:
            raise ValueError(f"{model.name} is not among its files")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is not a usable description ({type(error).__name__}: {error}); export the checkpoint again"
        ) from None
    for name, checksum in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise UserError(f"{file}: no such file; {DESCRIPTION} lists it; export the checkpoint again")
        if _checksum(file) != checksum:
            raise UserError(f"{file}: is damaged, or from another export; expected the file described by {DESCRIPTION}")
    if form == "safetensors":
        return Export(form, model, load_bundle(model))
    return Export(form, model, Bundle(None, plan, labels, digest, about))


def _write_onnx(bundle: Bundle, path: Path) -> None:
    write_bytes(path, graph_of(bundle))


def _write_openvino(bundle: Bundle, path: Path) -> None:
    import openvino

    model = openvino.Core().read_model(graph_of(bundle))
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # by which OpenVINO says that a file cannot be written
        raise WriteError.of(path, str(error).strip().splitlines()[-1]) from None


_WRITERS: dict[str, Callable[[Bundle, Path], None]] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "safetensors": save_safetensors,
}


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
