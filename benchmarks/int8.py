"""Compares an int8 network, quantised by NNCF for OpenVINO, with float32: DSC, label agreement and speed.

    python benchmarks/int8.py CHECKPOINT [--cases 3]

The CTs are synthetic abdomens, prepared as for prediction; the calibration cases are not among the scored ones. The
criterion for offering int8: it must be faster and keep the DSC within 0.002.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from torch import Tensor

from dlunet.datasets import open_phantoms
from dlunet.evaluation import dice_score
from dlunet.inference import Predictor, load_engine, stream_logits
from dlunet.networks import load_bundle
from dlunet.networks.onnx_graph import to_onnx
from dlunet.provenance import provenance
from dlunet.volumes import read_ct, read_labels

RESULTS = Path(__file__).parent / "results" / "int8.json"
CALIBRATION_CASES, REPEATS = 6, 7


class Quantised:
    """An engine that runs a compiled OpenVINO model."""

    device, name, tiles_at_once = "cpu", "openvino on cpu, int8", 1

    def __init__(self, model: openvino.Model) -> None:
        self.request = (
            openvino.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
        )

    def __call__(self, tiles: Tensor) -> Tensor:
        """Logits of a tile."""
        return torch.from_numpy(self.request.infer([np.ascontiguousarray(tiles)], share_outputs=True)[0])


def main() -> None:
    """Quantise, compare, time all engines in turn, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cases", type=int, default=3)
    options = parser.parse_args()
    bundle = load_bundle(options.checkpoint)
    with tempfile.TemporaryDirectory() as name:
        dataset = open_phantoms(Path(name), labelled=CALIBRATION_CASES, unlabelled=0, validation=0, test=options.cases)
        prepare = Predictor(bundle).prepare
        tiles = [tile for case in dataset.labelled for tile in tiles_of(prepare(read_ct(case.image)), bundle)]
        cases = [(read_ct(case.image), read_labels(case.label).array) for case in dataset.test if case.label]
    graph = to_onnx(bundle.network, bundle.plan.patch_size).SerializeToString()
    model = nncf.quantize(
        openvino.Core().read_model(graph),
        nncf.Dataset(tiles),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(tiles),
    )
    engines: dict[str, Any] = {
        engine: load_engine(options.checkpoint, engine, "cpu", "float32")[1] for engine in ("native", "openvino")
    }
    engines["openvino, int8"] = Quantised(model)
    labels = {
        name: [Predictor(bundle, engine=engine).segment(ct) for ct, _ in cases] for name, engine in engines.items()
    }
    result = {
        "cases": len(cases),
        "calibration_tiles": len(tiles),
        "dsc": {name: mean_dice(found, cases, bundle) for name, found in labels.items()},
        "least_agreement_with_float32": min(
            float((a == b).mean()) for a, b in zip(labels["openvino"], labels["openvino, int8"], strict=True)
        ),
        "median_seconds_a_tile": seconds_of(engines, torch.from_numpy(tiles[0])),
        "versions": {name: version(name) for name in ("nncf", "openvino")},
        "provenance": provenance(),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "provenance"}, indent=2))


def tiles_of(prepared: Tensor, bundle: Any) -> Iterator[np.ndarray]:
    """The tiles that prediction crops from a CT."""
    found: list[np.ndarray] = []

    def collect(tiles: Tensor) -> Tensor:
        found.append(tiles.numpy().copy())
        return torch.zeros(1, 1, *tiles.shape[2:])

    for _ in stream_logits(collect, prepared, bundle.plan.patch_size):
        pass
    yield from found


def mean_dice(found: list[np.ndarray], cases: list[Any], bundle: Any) -> float:
    """The mean DSC over cases and organs."""
    return float(
        np.mean(
            [
                dice_score(labels == label.id, truth == label.id)
                for labels, (_, truth) in zip(found, cases, strict=True)
                for label in bundle.labels
            ]
        )
    )


def seconds_of(engines: dict[str, Callable[[Tensor], Tensor]], tile: Tensor) -> dict[str, float]:
    """The median time of each engine, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(REPEATS):
        for name, engine in engines.items():
            begin = time.perf_counter()
            engine(tile)
            seconds[name].append(time.perf_counter() - begin)
    return {name: round(median(times), 4) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
