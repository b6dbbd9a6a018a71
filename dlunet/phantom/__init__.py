"""Synthetic abdominal CTs: a template anatomy under random smooth deformation, written in FLARE22's layout."""

from dlunet.phantom.generator import Phantom, make_phantom
from dlunet.phantom.writer import is_phantom, phantom_of, phase_of, truth_of, write_phantoms

__all__ = ["Phantom", "is_phantom", "make_phantom", "phantom_of", "phase_of", "truth_of", "write_phantoms"]
