"""Compares our sliding window with nnU-Net v2's predictor, both with the same trained network.

    python benchmarks/window_against_nnunet.py CHECKPOINT CT [CT …]

nnU-Net accumulates in float16, where the weights at the corners of a tile have at most one significant digit. It is
therefore compared both as it is and with accumulation in float32. It has no equivalent of single-axis flips (``axes``).
Both sides call the network through the engine chosen by ``auto``, so only the sliding window differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from inference_against_peers import nnunet_predictor
from torch import Tensor, nn

from dlunet.inference import Engine, Predictor, load_engine, predict_logits
from dlunet.provenance import provenance
from dlunet.volumes import read_ct

RESULTS = Path(__file__).parent / "results" / "window_against_nnunet.json"
FLIPS = ("none", "full")
#: Accepted difference of float16 sums, as a fraction of the range of the logits.
LIMIT = 2e-2
#: Largest difference, fraction of voxels beyond the limit, and fraction of equal labels, with their initial values.
START = {"of_range": 0.0, "voxels_beyond_limit": 0.0, "labels": 1.0}


def main() -> None:
    """Compare every CT and write the worst values for each setting of flips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    options = parser.parse_args()
    bundle, engine = load_engine(options.checkpoint, device="cpu")
    result: dict[str, Any] = {"cases": len(options.images), "engine": engine.name, "nnunetv2": version("nnunetv2")}
    for flips in FLIPS:
        worst = {f"{name}{suffix}": start for name, start in START.items() for suffix in ("", "_float32")}
        for image in options.images:
            prepared = Predictor(bundle).prepare(read_ct(image))
            ours = predict_logits(engine, prepared, bundle.plan.patch_size, flips=flips)
            predictor = nnunet_predictor(Module(engine), bundle.plan, flips)
            for suffix, sums in (("", contextlib.nullcontext()), ("_float32", sums_in_float32())):
                with sums, contextlib.redirect_stdout(io.StringIO()):
                    theirs = predictor.predict_sliding_window_return_logits(prepared).float()
                difference = (theirs - ours).abs().amax(0) / (ours.max() - ours.min())
                agreement = float((theirs.argmax(0) == ours.argmax(0)).double().mean())
                beyond = float((difference > LIMIT).double().mean())
                worst[f"of_range{suffix}"] = max(worst[f"of_range{suffix}"], float(difference.max()))
                worst[f"voxels_beyond_limit{suffix}"] = max(worst[f"voxels_beyond_limit{suffix}"], beyond)
                worst[f"labels{suffix}"] = min(worst[f"labels{suffix}"], agreement)
        result[flips] = worst
        print(flips, json.dumps(worst, indent=2))
    result["provenance"] = provenance()
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


class Module(nn.Module):
    """Wraps an engine as the module that nnU-Net expects."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, tiles: Tensor) -> Tensor:
        """Logits, copied so that the next call does not overwrite them."""
        return self.engine(tiles).clone()


@contextlib.contextmanager
def sums_in_float32() -> Iterator[None]:
    """Make nnU-Net's sliding window use float32 instead of float16 while the block runs."""
    from nnunetv2.inference import predict_from_raw_data as module

    half, gaussian = torch.half, module.compute_gaussian
    torch.half = torch.float32
    module.compute_gaussian = lambda *given, **named: gaussian(*given, **named | {"dtype": torch.float32})
    try:
        yield
    finally:
        torch.half, module.compute_gaussian = half, gaussian


if __name__ == "__main__":
    main()
