"""Every engine beside PyTorch in float32, on a trained network: labels that agree, and the DSC of each.

    python benchmarks/engine_agreement.py CHECKPOINT [--cases 3]

The CTs are synthetic abdomens, made on the spot, whose labels are known.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dlunet.datasets import open_phantoms
from dlunet.evaluation import dice_score
from dlunet.inference import Predictor, load_engine
from dlunet.provenance import provenance
from dlunet.volumes import read_ct, read_labels

RESULTS = Path(__file__).parent / "results" / "engine_agreement.json"
ENGINES = {
    "native, float32": {"engine": "native"},
    "onnxruntime, float32": {"engine": "onnxruntime"},
    "openvino, float32": {"engine": "openvino"},
    "openvino, bfloat16": {"engine": "openvino", "precision": "bfloat16"},
}


def main() -> None:
    """Compare and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cases", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        dataset = open_phantoms(Path(name), labelled=1, unlabelled=0, validation=0, test=options.cases)
        cases = [(read_ct(case.image), read_labels(case.label).array) for case in dataset.test if case.label]
    expected, dsc = segment(options.checkpoint, cases, engine="torch")
    result: dict[str, Any] = {"cases": len(cases), "dsc": {"torch, float32": dsc}, "agreement": {}}
    print(f"torch, float32: DSC {dsc:.4f}", flush=True)
    for title, settings in ENGINES.items():
        labels, dsc = segment(options.checkpoint, cases, **settings)
        agreement = [float((ours == theirs).mean()) for ours, theirs in zip(labels, expected, strict=True)]
        result["dsc"][title], result["agreement"][title] = dsc, min(agreement)
        print(f"{title}: DSC {dsc:.4f}, least agreement {min(agreement):.6f}", flush=True)
    result["versions"] = {name: version(name) for name in ("onnxruntime", "openvino")}
    result["provenance"] = provenance()
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")


def segment(checkpoint: Path, cases: list[Any], **settings: str) -> tuple[list[np.ndarray], float]:
    """Labels of each case, and the mean DSC over cases and organs."""
    bundle, engine = load_engine(checkpoint, device="cpu", **settings)
    predictor = Predictor(bundle, engine=engine)
    labels = [predictor.segment(volume) for volume, _ in cases]
    scores = [
        dice_score(found == label.id, truth == label.id)
        for found, (_, truth) in zip(labels, cases, strict=True)
        for label in bundle.labels
    ]
    return labels, float(np.mean(scores))


if __name__ == "__main__":
    main()
