"""Our sliding window beside nnU-Net v2's own predictor, both with the same trained network.

    python benchmarks/window_against_nnunet.py CHECKPOINT CT [CT …]

nnU-Net sums in float16, in which the smallest weights of a tile are rounded to 0 or to each other; so it is compared as
it is, and once more with its sums in float32. It knows no single-axis flips (``axes``).
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

from dlunet.inference import Predictor, predict_logits
from dlunet.networks import load_bundle
from dlunet.provenance import provenance
from dlunet.volumes import read_ct

RESULTS = Path(__file__).parent / "results" / "window_against_nnunet.json"
FLIPS = ("none", "full")


def main() -> None:
    """Compare every CT and write the worst figures of each kind of flips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    options = parser.parse_args()
    bundle = load_bundle(options.checkpoint)
    assert bundle.network is not None
    result: dict[str, Any] = {"cases": len(options.images), "nnunetv2": version("nnunetv2")}
    for flips in FLIPS:
        worst = {"of_range": 0.0, "of_range_float32": 0.0, "labels": 1.0, "labels_float32": 1.0}
        for image in options.images:
            prepared = Predictor(bundle).prepare(read_ct(image))
            ours = predict_logits(bundle.network, prepared, bundle.plan.patch_size, flips=flips)
            predictor = nnunet_predictor(bundle.network, bundle.plan, flips)
            for suffix, sums in (("", contextlib.nullcontext()), ("_float32", sums_in_float32())):
                with sums, contextlib.redirect_stdout(io.StringIO()):
                    theirs = predictor.predict_sliding_window_return_logits(prepared).float()
                difference = float((theirs - ours).abs().max() / (ours.max() - ours.min()))
                agreement = float((theirs.argmax(0) == ours.argmax(0)).double().mean())
                worst[f"of_range{suffix}"] = max(worst[f"of_range{suffix}"], difference)
                worst[f"labels{suffix}"] = min(worst[f"labels{suffix}"], agreement)
        result[flips] = worst
        print(flips, json.dumps(worst, indent=2))
    result["provenance"] = provenance()
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def sums_in_float32() -> Iterator[None]:
    """nnU-Net's window with float32 where it has float16."""
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
