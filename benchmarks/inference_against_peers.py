"""Times prediction from CT file to label file: nnU-Net v2 with its own network, MONAI with ours, and DLUNet.

    make bench-peers        or, in an environment with all of them:
    python benchmarks/inference_against_peers.py CHECKPOINT [--flips none full] [--cases 3] [--without-monai]

CHECKPOINT is a light network with the paper's plan. Every side segments the same 512×512×129 CTs in one process;
imports and engine compilation are not timed. A peer segments one case at a time, and before each of them DLUNet
segments all cases, so that other load on the machine affects all sides. Before timing, the script checks that our
engine and MONAI's sliding window give the logits of our sliding window in PyTorch; for nnU-Net's predictor this is
checked by window_against_nnunet.py. Peak memory is measured in a separate process; `cold_command` is the time of the
complete command for one case, from the second run on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from preparation_against_nnunet import write_case
from process_memory import peak_of
from torch import nn

from dlunet.inference import Predictor, TorchEngine, load_engine, make_engine, predict_files, predict_logits
from dlunet.inference.case_tables import read_case_table
from dlunet.labels import FLARE22
from dlunet.networks import load_bundle
from dlunet.networks.unet import FEATURES, KERNEL_SIZES, STRIDES
from dlunet.provenance import provenance
from dlunet.volumes import read_ct

RESULTS = Path(__file__).parent / "results"
#: The compared part of the prepared CT; it takes four tiles.
PART = (70, 180, 160)
SHAPE, SPACING = (129, 512, 512), (1.6, 0.57, 0.57)

Side = Callable[[list[Path], Path], None]


def main() -> None:
    """Compare the logits, time all sides in turn, measure memory, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--flips", nargs="+", default=["none", "full"])
    parser.add_argument("--cases", type=int, default=3)
    parser.add_argument("--image", type=Path, help="a CT of your own instead of a synthetic one")
    parser.add_argument("--without-monai", action="store_true")
    parser.add_argument("--nnunet-alone", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.nnunet_alone:  # in a separate process, whose memory is measured
        image, output = options.nnunet_alone
        sides(options.checkpoint, options.flips[0])["nnunet"]([image], output)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_cases(folder, options.cases, options.image)
        for flips in options.flips:
            measure(options, flips, images, folder)


def measure(options: argparse.Namespace, flips: str, images: list[Path], folder: Path) -> None:
    """Agreement, seconds per case and peak memory for one setting of flips."""
    chosen = sides(options.checkpoint, flips)
    if options.without_monai or flips != "none":
        del chosen["monai"]
    agreement = compare(options.checkpoint, flips, images[0])
    print(flips, json.dumps(agreement, indent=2), flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for number, image in enumerate(images):
        for peer in (name for name in chosen if name != "dlunet"):
            for name, cases in (("dlunet", images), (peer, [image])):
                seconds[name].append(timed(chosen[name], cases, folder / f"{flips}-{number}-{peer}-{name}"))
                print(name, seconds[name], flush=True)
    medians = {name: median(values) for name, values in seconds.items()}
    result: dict[str, Any] = {
        "shape": SHAPE,
        "spacing": SPACING,
        "flips": flips,
        "cases": len(images),
        "threads": torch.get_num_threads(),
        "agreement": agreement,
        "engine": load_engine(options.checkpoint, device="cpu")[1].name,
        "rounds_seconds_a_case": seconds,
        "seconds_a_case": {name: round(value, 2) for name, value in medians.items()},
        "times_faster": {
            name: round(value / medians["dlunet"], 2) for name, value in medians.items() if name != "dlunet"
        },
        "peak_rss_gib": peaks(options.checkpoint, flips, images[0], folder),
        "peers": {name: version(name) for name in ("nnunetv2", "monai", "openvino")},
        **provenance(),
    }
    if flips == "none":  # flips do not affect the start-up time
        result["cold_command"] = cold_command(options.checkpoint, images[0], folder)
    path = RESULTS / f"inference_against_peers_{flips}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    shown = ("seconds_a_case", "times_faster", "cold_command", "peak_rss_gib")
    print(json.dumps({key: result[key] for key in shown if key in result}, indent=2))


def timed(side: Side, images: list[Path], output: Path) -> float:
    """Seconds per case."""
    begin = time.perf_counter()
    side(images, output)
    return round((time.perf_counter() - begin) / len(images), 2)


def cold_command(checkpoint: Path, image: Path, folder: Path) -> dict[str, float]:
    """Seconds of the complete command for one case, and its overhead beyond the time it reports for the case."""
    adds, whole = [], []
    for number in range(4):
        output = folder / f"cold-{number}"
        begin = time.perf_counter()
        subprocess.run([sys.executable, *predict(checkpoint, "none", image, output)], check=True, capture_output=True)
        whole.append(time.perf_counter() - begin)
        (row,) = read_case_table(output / "efficiency.csv").values()
        adds.append(whole[-1] - float(row["seconds"]))
    return {"seconds": round(median(whole[1:]), 2), "adds": round(median(adds[1:]), 2)}


def predict(checkpoint: Path, flips: str, image: Path, output: Path) -> list[str]:
    """The arguments of the command that segments a CT."""
    words = [f"checkpoint={checkpoint}", f"input={image}", f"output={output}", f"flips={flips}", "device=cpu"]
    return ["-m", "dlunet", "predict", *words]


def write_cases(folder: Path, count: int, image: Path | None) -> list[Path]:
    """Write the same CT under several names; no side caches anything between cases."""
    image = image or write_case(folder, SHAPE, SPACING)[0]
    (folder / "cases").mkdir()
    paths = [folder / "cases" / f"case_{k}_0000.nii.gz" for k in range(count)]
    for path in paths:
        path.write_bytes(image.read_bytes())
    return paths


def sides(checkpoint: Path, flips: str) -> dict[str, Side]:
    """The functions from CT files to label files, each with its network loaded and its engine compiled."""
    bundle, engine = load_engine(checkpoint, device="cpu")
    ours = Predictor(bundle, flips=flips, engine=engine)
    network = eager(load_bundle(checkpoint).network)
    nnunet = nnunet_predictor(nnunet_network(), bundle.plan, flips)
    return {
        "dlunet": lambda images, output: predict_files(ours, images, output),
        "monai": lambda images, output: monai_files(ours, network, images, output),
        "nnunet": lambda images, output: nnunet_files(nnunet, images, output),
    }


def nnunet_network() -> nn.Module:
    """nnU-Net's own network, configured as by its planner for the paper's patch size."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    return PlainConvUNet(
        1, len(FEATURES), FEATURES, nn.Conv3d, KERNEL_SIZES, ((1, 1, 1), *STRIDES), 2, FLARE22.num_classes, 2, True,
        nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True},
        deep_supervision=False,
    )  # fmt: skip


def nnunet_predictor(
    network: nn.Module,
    plan: Any,
    flips: str,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Any:
    """nnU-Net's unmodified predictor, with the paper's plan and either nnU-Net's or our network."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(variable, tempfile.gettempdir())
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    statistics = {
        "max": 3000.0, "min": -1024.0, "median": plan.intensity.mean, "mean": plan.intensity.mean,
        "std": plan.intensity.std, "percentile_00_5": plan.intensity.lower, "percentile_99_5": plan.intensity.upper,
    }  # fmt: skip
    resampling = {"force_separate_z": None, "is_seg": False, "order": 3, "order_z": 0}
    of_logits = {"force_separate_z": None, "is_seg": False, "order": 1, "order_z": 0}
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 1, "batch_dice": True,
        "patch_size": list(plan.patch_size), "spacing": list(plan.spacing),
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape", "resampling_fn_probabilities_kwargs": of_logits,
        "median_image_size_in_voxels": list(plan.patch_size),
        "architecture": {"network_class_name": "x", "arch_kwargs": {}, "_kw_requires_import": []},
    }  # fmt: skip
    plans = PlansManager(
        {
            "dataset_name": "Dataset001_X", "plans_name": "nnUNetPlans", "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2], "image_reader_writer": "SimpleITKIO", "experiment_planner_used": "x",
            "label_manager": "LabelManager", "original_median_spacing_after_transp": list(plan.spacing),
            "foreground_intensity_properties_per_channel": {"0": statistics},
            "configurations": {"3d_fullres": configuration},
        }
    )  # fmt: skip
    dataset = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {label.name: label.id for label in FLARE22},
        "file_ending": ".nii.gz",
    }
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(use_mirroring=flips == "full", device=device, allow_tqdm=False)
        predictor.manual_initialization(
            network.to(device).eval(), plans, plans.get_configuration("3d_fullres"), [network.state_dict()], dataset,
            "nnUNetTrainer", (0, 1, 2),
        )  # fmt: skip
    return predictor


def nnunet_files(predictor: Any, images: list[Path], output: Path) -> None:
    """Segment the cases one after the other in one process."""
    output.mkdir(parents=True, exist_ok=True)
    targets = [str(output / path.name.removesuffix("_0000.nii.gz")) for path in images]
    with contextlib.redirect_stdout(io.StringIO()):
        predictor.predict_from_files_sequential([[str(path)] for path in images], targets)


def monai_files(ours: Predictor, network: nn.Module, images: list[Path], output: Path) -> None:
    """MONAI's sliding window with our network in standard layers; reading, preparation and writing are ours."""
    from dlunet.volumes import write_labels

    for path in images:
        volume = read_ct(path)
        prepared = ours.prepare(volume)
        with torch.inference_mode():
            logits = monai_logits(network, prepared, ours.bundle.plan.patch_size)
            size = volume.array.shape
            labels = nn.functional.interpolate(logits, size, mode="trilinear", align_corners=False)[0].argmax(0)
        write_labels(labels.numpy().astype(np.uint8), output / f"{path.name[:-12]}.nii.gz", volume.stored)


def monai_logits(network: nn.Module, prepared: torch.Tensor, patch_size: tuple[int, int, int]) -> torch.Tensor:
    """Logits of MONAI's SlidingWindowInferer, used as in its documentation."""
    from monai.inferers import SlidingWindowInferer

    return SlidingWindowInferer(patch_size, overlap=0.5, mode="gaussian")(prepared[None], network)


def eager(network: nn.Module | None) -> nn.Module:
    """Our network as users would write it, with PyTorch's standard layers and default layout."""
    from engine_speed import in_default_layout

    return in_default_layout(network)  # type: ignore[arg-type]


def compare(checkpoint: Path, flips: str, image: Path) -> dict[str, float]:
    """Compare our engine and MONAI's sliding window with our sliding window in PyTorch, on a part of a CT."""
    bundle = load_bundle(checkpoint)
    assert bundle.network is not None
    prepared = Predictor(bundle).prepare(read_ct(image))[(slice(None), *map(slice, PART))]
    logits = predict_logits(TorchEngine(bundle.network), prepared, bundle.plan.patch_size, flips=flips)
    others = {"engine": predict_logits(make_engine(bundle), prepared, bundle.plan.patch_size, flips=flips)}
    if flips == "none":
        others["monai"] = monai_logits(bundle.network, prepared, bundle.plan.patch_size)[0]
    found = {}
    for name, other in others.items():
        found[f"{name}, of range"] = ((other - logits).abs().max() / (logits.max() - logits.min())).item()
        found[f"{name}, labels"] = float((other.argmax(0) == logits.argmax(0)).double().mean())
        assert found[f"{name}, labels"] >= 0.999, found
    return found


def peaks(checkpoint: Path, flips: str, image: Path, folder: Path) -> dict[str, float]:
    """Peak resident memory, in GiB, of a process that segments one case; for DLUNet, the complete command."""
    theirs = [__file__, str(checkpoint), "--flips", flips, "--nnunet-alone", str(image), str(folder / "alone")]
    found = {"dlunet": peak_of(predict(checkpoint, flips, image, folder / f"peak-{flips}"))}
    if flips == "none":  # with flips nnU-Net takes 15 minutes longer, but no more memory
        found["nnunet"] = peak_of(theirs)
    return found


if __name__ == "__main__":
    main()
