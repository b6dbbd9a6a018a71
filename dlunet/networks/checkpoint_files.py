"""Reads trained networks from checkpoints and .safetensors files, without executing code from them."""

from __future__ import annotations

import errno
import hashlib
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dlunet.errors import UserError, cannot_be_opened, in_one_line
from dlunet.files import write_bytes
from dlunet.networks.bundle import FIRST, KEY, WEIGHTS, Bundle, read_description
from dlunet.networks.registry import build_network
from dlunet.networks.unet import UNet
from dlunet.run_layout import RunLayout

#: The suffix of files with the weights of one network and no training state.
SAFETENSORS = ".safetensors"

#: Example of a checkpoint path, for messages.
EXAMPLE = RunLayout(Path("runs/…")).best


def load_bundle(path: Path | str) -> Bundle:
    """Load the network that predicts from a checkpoint, without executing code from it.

    Raises:
        UserError: The file is missing, damaged, or not a DLUNet checkpoint.
    """
    path = Path(path)
    values = read_safetensors(path) if path.suffix == SAFETENSORS else read_checkpoint(path)
    try:
        described = values[KEY]
        plan, labels = read_description(described)
        network = build_network(described["network"])
        weights = _weights_of(values["state_dict"], described.get(WEIGHTS, FIRST))
        network.load_state_dict(weights)
        if isinstance(network, UNet):
            network.check_size(plan.patch_size)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: is not a usable DLUNet checkpoint ({type(error).__name__}: {in_one_line(error)}); expected one "
            f"that training wrote, such as {EXAMPLE}"
        ) from None
    return Bundle(network.eval(), plan, labels, _digest(weights), described)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, with tensors on the CPU.

    Raises:
        UserError: The file is missing or is not a checkpoint.
    """
    _check_exists(path)
    try:
        if (reason := damage_of(path)) is not None:
            raise ValueError(reason)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way: IndexError, struct.error, AssertionError, …
        # PyTorch's message about other contents than weights is long, and advises to execute them.
        other = isinstance(error, pickle.UnpicklingError)
        reason = "it contains something else than weights" if other else in_one_line(error) or type(error).__name__
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({reason}); expected one that training wrote"
        ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: is not a checkpoint: found a {type(values).__name__}, expected a dictionary")
    return values


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint file, by its checksums, which PyTorch does not compare; None: it is whole.

    Raises:
        UserError: It cannot be read now, as on a network disk that does not answer.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive can fail in any way, such as by places outside the file (EINVAL)
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise cannot_be_opened(path, error) from None
        return in_one_line(error) or type(error).__name__
    return None if damaged is None else f"the checksum of {damaged} is wrong"


def save_safetensors(bundle: Bundle, path: Path) -> None:
    """Write the network that predicts, with its description, as a .safetensors file."""
    assert bundle.network is not None
    weights = {name: value.contiguous() for name, value in bundle.network.state_dict().items()}
    described = {**bundle.description, WEIGHTS: ""}  # there is no other network in the file
    write_bytes(path, safetensors.torch.save(weights, {KEY: json.dumps(described)}))


def read_safetensors(path: Path) -> dict[str, Any]:
    """The contents of a .safetensors file, arranged as in a checkpoint.

    Raises:
        UserError: The file is missing, damaged, or not from DLUNet.
    """
    _check_exists(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})[KEY])
            prefix = described.get(WEIGHTS, FIRST)
            weights = {f"{prefix}{name}": file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: is not a checkpoint, or is damaged ({error}); expected one that `dlunet export` wrote"
        ) from None
    return {KEY: described, "state_dict": weights}


def _weights_of(state: dict[str, Tensor], prefix: str | list[str]) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, without it; of several prefixes, as those of an ensemble."""
    if isinstance(prefix, list):
        members = [_weights_of(state, one) for one in prefix]
        return {f"members.{place}.{name}": value for place, one in enumerate(members) for name, value in one.items()}
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; expected a file such as {EXAMPLE}")


def _digest(weights: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
