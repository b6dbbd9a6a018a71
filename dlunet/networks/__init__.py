"""Networks: a U-Net with two kinds of stage, their registry, and reading and writing trained networks."""

from dlunet.networks.bundle import Bundle, describe, read_description
from dlunet.networks.checkpoint_files import load_bundle, save_safetensors
from dlunet.networks.ensemble import Ensemble, mean_logits
from dlunet.networks.registry import build_network, check_logits, register_network
from dlunet.networks.unet import LightUNet, PlainUNet, UNet, runs_compiled

__all__ = [
    "Bundle",
    "Ensemble",
    "LightUNet",
    "PlainUNet",
    "UNet",
    "build_network",
    "check_logits",
    "describe",
    "load_bundle",
    "mean_logits",
    "read_description",
    "register_network",
    "runs_compiled",
    "save_safetensors",
]
