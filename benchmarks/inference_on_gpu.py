"""Measures the cost of prediction on a GPU by FLARE22's metrics, beside the paper's values and nnU-Net v2.

    python benchmarks/inference_on_gpu.py CHECKPOINT [--cases 5]

CHECKPOINT is a light network with the paper's plan. If nnU-Net is installed, its predictor is timed with its own
network. The paper reports, on one RTX 2080 Ti: 73.9 s per case, area under the GPU memory curve 138,831 MB·s, area
under the CPU utilisation curve 1,195 %·s, peak GPU memory 2045 MB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inference_memory import write_ct

from dlunet.inference import Predictor, load_engine, predict_files
from dlunet.inference.case_tables import read_case_table
from dlunet.provenance import provenance
from dlunet.volumes import read_ct

RESULTS = Path(__file__).parent / "results" / "inference_on_gpu.json"
SHAPE = (129, 512, 512)
PAPER = {"seconds": 73.9, "gpu_area_mb_s": 138_831, "cpu_area_percent_s": 1_195, "gpu_peak_mb": 2045}


def main() -> None:
    """Measure each setting of flips and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cases", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("inference_on_gpu: PyTorch finds no GPU")
    bundle, engine = load_engine(options.checkpoint, "torch", "cuda")
    results: dict[str, Any] = {"paper": PAPER, "shape": SHAPE, "engine": engine.name}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [write_ct(folder / f"case_{k}.nii.gz", SHAPE) for k in range(options.cases)]
        prepared = Predictor(bundle).prepare(read_ct(images[0]))
        for flips in ("none", "axes", "full"):
            predictor = Predictor(bundle, flips=flips, engine=engine)
            predict_files(predictor, images, folder / flips)
            # The first case is excluded: it includes the warm-up of the GPU.
            rows = list(read_case_table(folder / flips / "efficiency.csv").values())[1:]
            results[flips] = {key: median(float(row[key]) for row in rows) for key in PAPER}
            results[flips]["network_seconds"] = seconds_of(lambda p=predictor: p.label(prepared, (2, 2, 2)))
            print(flips, results[flips], flush=True)
        if find_spec("nnunetv2"):
            from inference_against_peers import nnunet_network, nnunet_predictor

            for flips in ("none", "full"):
                theirs = nnunet_predictor(nnunet_network(), bundle.plan, flips, torch.device("cuda"))
                run = lambda p=theirs: p.predict_sliding_window_return_logits(prepared)  # noqa: E731
                results[flips]["nnunet_network_seconds"] = seconds_of(run)
    results["provenance"] = provenance()
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps({key: value for key, value in results.items() if key != "provenance"}, indent=2))


def seconds_of(run: Any, repeats: int = 3) -> float:
    """The median time of a function on the GPU, after one warm-up run."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return round(median(times[1:]), 3)


if __name__ == "__main__":
    main()
