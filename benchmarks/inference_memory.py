"""Measures the peak memory of ``dlunet predict`` for 129 and 1000 slices, each engine, and many cases.

    python benchmarks/inference_memory.py CHECKPOINT

CHECKPOINT is a light network with the paper's plan. The two CTs are a noisy water phantom; their content does not
affect memory. The arrays that must exist are subtracted from the peaks: the CT in the data type of its file, and its
label map. The many cases are small, with one corrupt file in the middle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk
from process_memory import peak_of

from dlunet.errors import UserError
from dlunet.inference import Predictor, load_engine, predict_files
from dlunet.provenance import provenance

RESULTS = Path(__file__).parent / "results" / "inference_memory.json"
SPACING = (1.6, 0.57, 0.57)
LENGTHS = (129, 1000)
ENGINES: dict[str, list[str]] = {
    "native": ["engine=native"],
    "openvino": ["engine=openvino"],
    "openvino, bfloat16": ["engine=openvino", "precision=bfloat16"],
    "onnxruntime": ["engine=onnxruntime"],
    "torch": ["engine=torch"],
}
CASES = 200


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    checkpoint = parser.parse_args().checkpoint
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"spacing": SPACING, "slices": {}, "engines": {}}
        for slices in LENGTHS:
            image = write_ct(folder / f"{slices}.nii.gz", (slices, 512, 512))
            peak = peak_of(predict(checkpoint, image, folder / str(slices)))
            arrays = slices * 512 * 512 * 3 / 2**30  # per voxel, two bytes for the CT and one for its label
            result["slices"][slices] = {"peak_gib": round(peak, 3), "above_arrays_gib": round(peak - arrays, 3)}
            print(slices, result["slices"][slices], flush=True)
        short, long = (result["slices"][slices]["above_arrays_gib"] for slices in LENGTHS)
        result["long_to_short"] = round(long / short, 3)
        for engine, settings in ENGINES.items():
            peak = peak_of(
                predict(checkpoint, folder / f"{LENGTHS[0]}.nii.gz", folder / engine.replace(", ", "-"), *settings)
            )
            result["engines"][engine] = round(peak, 3)
            print(engine, result["engines"][engine], flush=True)
        result["many_cases"] = many_cases(checkpoint, folder / "many")
    result["provenance"] = provenance()
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "provenance"}, indent=2))


def write_ct(path: Path, shape: tuple[int, int, int]) -> Path:
    """Write a noisy CT of a body of water in air."""
    _, y, x = (np.linspace(-1, 1, n) for n in shape)
    body = np.where(np.add.outer(y**2, x**2) < 0.6, 40, -1000).astype(np.int16)
    rng = np.random.default_rng(0)
    volume = np.stack([body + rng.integers(-20, 20, body.shape, dtype=np.int16) for _ in range(shape[0])])
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing(SPACING[::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True, compressionLevel=1)
    return path


def predict(checkpoint: Path, image: Path, output: Path, *settings: str) -> list[str]:
    """The arguments of the command that segments a CT."""
    words = [f"checkpoint={checkpoint}", f"input={image}", f"output={output}", "device=cpu", *settings]
    return ["-m", "dlunet", "predict", *words]


def many_cases(checkpoint: Path, folder: Path) -> dict[str, float]:
    """Resident memory in GiB after the tenth and after the last of many cases."""
    bundle, engine = load_engine(checkpoint, device="cpu")
    first = write_ct(folder / "case_000.nii.gz", (40, 160, 160))
    images = [first]
    for number in range(1, CASES):
        images.append(first.with_name(f"case_{number:03}.nii.gz"))
        images[-1].write_bytes(first.read_bytes() if number != CASES // 2 else b"no CT")
    memory: list[float] = []

    def watched(tile: Any) -> Any:
        memory.append(psutil.Process().memory_info().rss / 2**30)
        return engine(tile)

    for name in ("device", "name", "tiles_at_once"):
        setattr(watched, name, getattr(engine, name))
    try:
        predict_files(Predictor(bundle, engine=watched), images, folder / "labels")  # type: ignore[arg-type]
    except UserError as error:
        print(error)
    written = len(list((folder / "labels").glob("case_*.nii.gz")))
    tiles = len(memory) // written
    return {
        "cases": CASES,
        "written": written,
        "after_tenth_gib": round(memory[10 * tiles], 3),
        "after_last_gib": round(memory[-1], 3),
        "last_to_tenth": round(memory[-1] / memory[10 * tiles], 4),
    }


if __name__ == "__main__":
    main()
