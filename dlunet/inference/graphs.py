"""Converts networks to ONNX graphs for the engines and exports that need one."""

from __future__ import annotations

from torch import nn

from dlunet.networks import Bundle, LightUNet, PlainUNet
from dlunet.networks.unet import is_as_written


def why_no_graph(network: nn.Module | None) -> str | None:
    """Why a network cannot be written as an ONNX graph; None if it can."""
    if network is not None and is_as_written(network):
        return None
    changed = ", which changes what they compute" if isinstance(network, LightUNet | PlainUNet) else ""
    return f"only LightUNet and PlainUNet can be written as a graph, found {type(network).__name__}{changed}"


def graph_of(bundle: Bundle) -> bytes:
    """A bundle's network as a serialised ONNX model, see :func:`dlunet.networks.onnx_graph.to_onnx`.

    Raises:
        ModuleNotFoundError: onnx is not installed.
    """
    from dlunet.networks.onnx_graph import to_onnx

    assert isinstance(bundle.network, LightUNet | PlainUNet)
    return to_onnx(bundle.network, bundle.plan.patch_size).SerializeToString()
