"""Every engine reproduces PyTorch's labels; exports are portable; damaged or missing parts are named."""

import importlib
import json
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dlunet.errors import UserError, WriteError
from dlunet.inference import Predictor, export, export_bundle, load_engine, make_engine
from dlunet.inference.engines import TorchEngine, base, choice
from dlunet.inference.engines.native import NativeEngine
from dlunet.inference.engines.onnx_runtime import OnnxRuntimeEngine
from dlunet.inference.engines.pytorch import tiles_at_once
from dlunet.labels import FLARE22
from dlunet.native import find_compiler, library
from dlunet.networks import Bundle, LightUNet, PlainUNet, build_network, describe, load_bundle, save_safetensors
from dlunet.preparation import Intensity, Plan
from dlunet.volumes import read_ct

PLAN = Plan((8.0, 8.0, 8.0), (16, 32, 32), Intensity(-1000, 400, 0, 100))
NETWORK = {
    "kind": "LightUNet",
    "num_classes": 14,
    "features": [4, 6, 8],
    "strides": [[1, 2, 2], [2, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
}
OTHERS = [name for name in ("onnxruntime", "openvino") if find_spec(name) and find_spec("onnx")]
FORMATS = ["safetensors", *(["onnx"] if find_spec("onnx") else []), *(["openvino"] if "openvino" in OTHERS else [])]
OTHERS += ["native"] if find_compiler() else []


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    networks = nn.ModuleList([build_network(NETWORK)])
    weights = {f"networks.{name}": value for name, value in networks.state_dict().items()}
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    torch.save({"dlunet": describe(NETWORK, PLAN, FLARE22), "state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def volume(tiny_root):
    return read_ct(next((tiny_root / "Testing" / "images").iterdir()))


@pytest.fixture(scope="module")
def exports(checkpoint, tmp_path_factory):
    """One exported folder per format."""
    folder = tmp_path_factory.mktemp("exports")
    for form in FORMATS:
        export_bundle(load_bundle(checkpoint), form, folder / form)
    return folder


def segment(path, volume, **settings):
    bundle, engine = load_engine(path, **settings)
    return Predictor(bundle, engine=engine).segment(volume), bundle, engine


@pytest.mark.parametrize("engine", OTHERS)
def test_an_engine_agrees_with_pytorch(engine, checkpoint, volume):
    expected, _, torchs = segment(checkpoint, volume, engine="torch", device="cpu")
    labels, bundle, other = segment(checkpoint, volume, engine=engine, device="cpu")
    assert torchs.name == "torch on cpu, float32" and other.name == f"{engine} on cpu, float32"
    tile = torch.randn(1, 1, *PLAN.patch_size)
    with torch.inference_mode():
        logits = bundle.network(tile)
    assert (other(tile) - logits).abs().max() < 1e-3 * (logits.max() - logits.min())
    assert (labels == expected).mean() > 0.999 and len(np.unique(expected)) > 3


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_predicts_what_its_checkpoint_does(form, exports, checkpoint, volume):
    expected, original, _ = segment(checkpoint, volume, engine="torch", device="cpu")
    labels, bundle, _ = segment(exports / form, volume, device="cpu")
    assert (bundle.plan, bundle.labels, bundle.digest) == (original.plan, original.labels, original.digest)
    assert (labels == expected).mean() > 0.999
    moved = shutil.copytree(exports / form, exports.parent / f"moved-{form}", dirs_exist_ok=True)
    np.testing.assert_array_equal(segment(moved, volume, device="cpu")[0], labels)


@pytest.mark.parametrize("form", FORMATS[1:])
def test_an_export_whose_engines_cannot_use_the_gpu_runs_on_the_cpu(form, exports, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert load_engine(exports / form)[1].name.endswith("on cpu, float32")
    with pytest.raises(UserError, match=r"found device=cuda|has no CUDAExecutionProvider"):
        load_engine(exports / form, device="cuda")


def test_a_safetensors_file_alone(checkpoint, volume, tmp_path):
    bundle = load_bundle(checkpoint)
    save_safetensors(bundle, tmp_path / "light.safetensors")
    labels, loaded, _ = segment(tmp_path / "light.safetensors", volume, engine="torch", device="cpu")
    assert (loaded.plan, loaded.labels, loaded.digest) == (PLAN, FLARE22, bundle.digest)
    np.testing.assert_array_equal(labels, segment(checkpoint, volume, engine="torch", device="cpu")[0])


def test_auto_takes_the_fastest_that_is_installed(checkpoint, monkeypatch):
    if find_compiler():
        assert load_engine(checkpoint, device="cpu")[1].name == "native on cpu, float32"
    monkeypatch.setattr(library, "find_compiler", lambda: None)
    library.load_library.cache_clear()
    for installed, expected in (
        ({"onnx", "openvino", "onnxruntime"}, "openvino"),
        ({"onnx", "onnxruntime"}, "onnxruntime"),
        ({"openvino"}, "torch"),  # OpenVINO cannot read the network without onnx
        (set(), "torch"),
    ):
        monkeypatch.setattr(choice, "find_spec", lambda name, known=installed: name if name in known else None)
        if expected in ("torch", *OTHERS):
            assert load_engine(checkpoint, device="cpu")[1].name.startswith(expected)
    assert load_engine(checkpoint, device="cpu", precision="bfloat16")[1].name == "torch on cpu, bfloat16"
    with pytest.raises(UserError, match="engine=onnxruntime: onnx is not installed"):
        load_engine(checkpoint, device="tensorrt")


class Broken(TorchEngine):
    """PyTorch with logits that cannot be used."""

    def __init__(self, network, spoil):
        super().__init__(network)
        self.spoil = spoil

    def __call__(self, tiles):
        return self.spoil(super().__call__(tiles))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda logits: logits[:, 1:], r"found logits of shape \(1, 13, 16, 32, 32\); expected \(1, 14, 16, 32, 32\)"),
        (lambda logits: logits.where(logits < logits.max(), float("nan")), "found NaN among its logits"),
    ],
)
def test_logits_that_cannot_be_used_end_in_an_error(spoil, message, checkpoint, volume):
    bundle = load_bundle(checkpoint)
    with pytest.raises(UserError, match=f"^torch on cpu, float32: {message}"):
        Predictor(bundle, engine=Broken(bundle.network, spoil)).segment(volume)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="an engine torch is already registered by dlunet"):
        base.register_engine("torch")(Broken)
    assert base.ENGINES["torch"] is TorchEngine


def test_an_engine_registers_itself(checkpoint, volume, monkeypatch):
    """It runs on request; ``auto`` chooses it only on devices for which it has a rank, the lowest rank first."""
    monkeypatch.setitem(base.ENGINES, "mine", None)  # undone after the test
    del base.ENGINES["mine"]

    @base.register_engine("mine")
    class Mine(TorchEngine):
        auto_rank = {}  # noqa: RUF012

    expected, _, _ = segment(checkpoint, volume, engine="torch", device="cpu")
    labels, _, engine = segment(checkpoint, volume, engine="mine")
    assert type(engine) is Mine
    np.testing.assert_array_equal(labels, expected)
    assert type(load_engine(checkpoint, device="cpu")[1]) is not Mine
    Mine.auto_rank = {"cpu": 0}
    assert type(load_engine(checkpoint, device="cpu")[1]) is Mine


@pytest.mark.parametrize(
    ("patch", "device", "tiles"),
    [((56, 160, 160), "cuda", 1), ((28, 80, 80), "cuda", 8), ((128,) * 3, "cuda", 1), ((28, 80, 80), "cpu", 1)],
)
def test_a_gpu_takes_as_many_tiles_as_fill_the_papers_patch(patch, device, tiles):
    assert tiles_at_once(patch, device) == tiles


def test_a_network_that_is_not_a_unet_runs_in_pytorch(tmp_path):
    network = nn.Conv3d(1, 14, 3, padding=1)
    bundle = Bundle(network, PLAN, FLARE22)
    engine = make_engine(bundle)
    assert engine.name == "torch on cpu, float32"
    tile = torch.randn(1, 1, *PLAN.patch_size)
    with torch.inference_mode():
        torch.testing.assert_close(engine(tile), network(tile))
    for name in ("onnxruntime", "openvino"):
        with pytest.raises(
            UserError, match=rf"^engine={name}: only LightUNet and PlainUNet .*, found Conv3d; engine=torch runs"
        ):
            make_engine(bundle, name)
    for form in ("onnx", "openvino"):
        with pytest.raises(UserError, match=rf"^format={form}: .* found Conv3d; expected format=safetensors"):
            export_bundle(bundle, form, tmp_path)


def test_onnx_runtime_that_falls_back_to_the_cpu_is_not_taken_for_the_gpu(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_: session)
    with pytest.raises(base.EngineUnavailable, match="device=cuda: ONNX Runtime could not use its CUDAExecutionProv"):
        OnnxRuntimeEngine(b"", "cuda", "float32")


@pytest.mark.parametrize("error", [ImportError("libx.so: not found"), RuntimeError("CUDA error:\nall devices busy")])
def test_an_engine_that_is_installed_and_does_not_work(checkpoint, monkeypatch, caplog, error):
    """``engine=auto`` says so and takes the next one; requested by name, it is refused."""

    def fail(*_):
        raise error

    monkeypatch.setattr(NativeEngine, "from_bundle", fail)
    monkeypatch.setattr(NativeEngine, "auto_rank", {"cpu": 0})
    monkeypatch.setattr(NativeEngine, "why_not", lambda network: None)
    _, engine = load_engine(checkpoint, device="cpu")
    assert not isinstance(engine, NativeEngine)
    reason = f"does not work here ({type(error).__name__}: {' '.join(str(error).split())})"
    assert f"engine=native cannot be used: {reason}" in caplog.text
    with pytest.raises(UserError) as caught:
        load_engine(checkpoint, engine="native")
    assert str(caught.value) == f"engine=native: {reason}; engine=torch runs every checkpoint"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(checkpoint):
    with pytest.raises(UserError, match=r"^engine=torch: PyTorch finds no GPU; choose device=cpu"):
        load_engine(checkpoint, engine="torch", device="cuda")


def no_engine(name, monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda package: None if package == name else package)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"engine": "tensorflow"},
            "engine: found tensorflow; expected one of auto, torch, native, onnxruntime, openvino",
        ),
        ({"device": "tpu"}, "device: found tpu; expected one of auto, cpu, cuda, tensorrt"),
        ({"precision": "int3"}, "precision: found int3; expected one of auto, float32"),
        (
            {"engine": "torch", "device": "tensorrt"},
            "engine=torch: found device=tensorrt; expected one of cpu, cuda, or",
        ),
        ({"engine": "native", "device": "tensorrt"}, "engine=native: found device=tensorrt; expected cpu, or"),
        (
            {"engine": "native", "precision": "bfloat16"},
            "expected float32, or engine=torch or openvino",
        ),
    ],
)
def test_settings_that_do_not_exist(settings, message, checkpoint):
    with pytest.raises(UserError, match=message):
        load_engine(checkpoint, **settings)


@pytest.mark.skipif("openvino" not in OTHERS, reason="OpenVINO is not installed")
def test_settings_that_do_not_fit_together(checkpoint, exports, monkeypatch):
    for path, settings, message in (
        (exports / "openvino", {"engine": "torch"}, "was exported as openvino; expected engine=openvino"),
        (exports / "onnx", {"engine": "torch"}, "was exported as onnx; expected engine=onnxruntime or openvino"),
        (
            exports / "openvino",
            {"device": "cuda"},
            "openvino: found device=cuda; expected cpu, or the checkpoint itself",
        ),
        (
            checkpoint,
            {"engine": "openvino", "device": "tensorrt"},
            "openvino: found device=tensorrt; expected cpu",
        ),
        (
            checkpoint,
            {"engine": "onnxruntime", "precision": "bfloat16"},
            "onnxruntime: found precision=bfloat16",
        ),
        (checkpoint, {"engine": "onnxruntime", "device": "tensorrt"}, "no TensorrtExecutionProvider"),
    ):
        with pytest.raises(UserError, match=message):
            load_engine(path, **settings)
    no_engine("openvino", monkeypatch)
    with pytest.raises(UserError, match=r"openvino is not installed; pip install 'dlunet\[openvino\]'"):
        load_engine(checkpoint, engine="openvino")


def about(change):
    """A change to dlunet.json."""

    def spoil(folder):
        path = folder / "dlunet.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    return spoil


def rewrite(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


SPOILT = {
    "no description": lambda folder: (folder / "dlunet.json").unlink(),
    "a description cut off": rewrite("dlunet.json", lambda data: data[:40]),
    "a description that is none": rewrite("dlunet.json", lambda data: b"[1, 2]"),
    "an empty description": rewrite("dlunet.json", lambda data: b""),
    "bytes that are no text": rewrite("dlunet.json", lambda data: b"\xff\xfe\x00"),
    "no model": lambda folder: (folder / "model.safetensors").unlink(),
    "a model cut off": rewrite("model.safetensors", lambda data: data[:-100]),
    "a model with one bit changed": rewrite("model.safetensors", lambda data: data[:-9] + b"!" + data[-8:]),
    "an empty model": rewrite("model.safetensors", lambda data: b""),
    "no plan": about(lambda values: values.pop("plan")),
    "no labels": about(lambda values: values.pop("labels")),
    "labels with a gap": about(lambda values: values["labels"]["labels"].pop(2)),
    "another number of classes": about(lambda values: values["network"].update(num_classes=7)),
    "an unknown format": about(lambda values: values.update(model_format="keras")),
    "no list of files": about(lambda values: values.pop("files")),
    "files that are no list": about(lambda values: values.update(files=3)),
    "another file's checksum": about(lambda values: values["files"].update({"model.safetensors": "0" * 64})),
    "a file that is not there": about(lambda values: values["files"].update({"model.bin": "0" * 64})),
    "the model not listed": about(lambda values: values["files"].pop("model.safetensors")),
    "of a newer version": about(lambda values: values.update(format=2, version="9.0")),
    "a plan of another kind": about(lambda values: values.update(plan={"spacing": "2 mm"})),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_damaged_export_is_refused(spoil, exports, tmp_path):
    folder = shutil.copytree(exports / "safetensors", tmp_path / "export")
    spoil(folder)
    with pytest.raises(UserError, match="export") as caught:
        load_engine(folder, device="cpu")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("described", ["[]", "3", '"x"'])
def test_a_safetensors_file_of_something_else(tmp_path, described):
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", {"dlunet": described})
    with pytest.raises(UserError, match=r"odd\.safetensors: is not a"):
        load_engine(tmp_path / "odd.safetensors")


def test_an_export_replaces_another_one_of_the_folder(checkpoint, tmp_path):
    bundle = load_bundle(checkpoint)
    for form in FORMATS:
        export_bundle(bundle, form, tmp_path)
        listed = json.loads((tmp_path / "dlunet.json").read_text())["files"]
        assert {"dlunet.json", *listed} == {path.name for path in tmp_path.iterdir()}
        load_engine(tmp_path, device="cpu")


def test_an_export_leaves_other_files_alone(checkpoint, tmp_path, monkeypatch):
    """Also where it fails: what was there before it stays."""
    bundle, names = load_bundle(checkpoint), ("model.ckpt", "model.notes.txt")
    for name in names:
        (tmp_path / name).write_text(name)
    export_bundle(bundle, "safetensors", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {*names, "dlunet.json", "model.safetensors"}
    monkeypatch.setitem(export._WRITERS, "onnx", lambda *_: importlib.import_module("no_such_package"))
    with pytest.raises(UserError, match="no_such_package is not installed"):
        export_bundle(bundle, "onnx", tmp_path)
    (tmp_path / "dlunet.json").unlink()
    with pytest.raises(UserError, match=r"model.safetensors: is of no export in this folder, and would be replaced"):
        export_bundle(bundle, "safetensors", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: content for name, content in before.items() if name != "dlunet.json"
    }


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_cannot_be_written(form, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file: could not be written"):
        export_bundle(load_bundle(checkpoint), form, tmp_path / "file")


class OwnForward(LightUNet):
    def forward(self, x):
        return super().forward(x + 1)


class OwnDecoding(LightUNet):
    def decode(self, features):
        return 2 * super().decode(features)


class Gated(PlainUNet):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.gate = nn.Conv3d(1, 1, 1)

    def encode(self, x):
        return super().encode(self.gate(x))


class OwnLayer(PlainUNet):
    def __init__(self, **settings):
        super().__init__(**settings)
        self.encoder[0][2] = nn.ReLU()


@pytest.mark.parametrize("kind", [OwnForward, OwnDecoding, Gated, OwnLayer])
def test_a_network_derived_from_a_unet_is_run_as_it_is(kind, tmp_path):
    """Not as the U-Net that it is derived from, by code written for that."""
    torch.manual_seed(0)
    network = kind(**{name: value for name, value in NETWORK.items() if name != "kind"}).eval()
    bundle = Bundle(network, PLAN, FLARE22, description=describe(NETWORK, PLAN, FLARE22))
    engine, tile = make_engine(bundle, "auto"), torch.randn(1, 1, *PLAN.patch_size)
    with torch.inference_mode():
        assert engine.name.startswith("torch") and torch.allclose(engine(tile), network(tile), atol=1e-4)
    for form in FORMATS[1:]:
        with pytest.raises(UserError, match=f"found {kind.__name__}, which changes what they compute"):
            export_bundle(bundle, form, tmp_path)


class Renamed(LightUNet):
    """Changes nothing."""


def test_a_derived_network_that_changes_nothing_runs_in_the_fastest_engine():
    network = Renamed(**{name: value for name, value in NETWORK.items() if name != "kind"})
    auto = make_engine(Bundle(network, PLAN, FLARE22), "auto").name
    assert auto.startswith(OTHERS[-1] if OTHERS[-1:] == ["native"] else auto)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64], ids=repr)
def test_a_file_that_is_no_safetensors(content, tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"odd\.safetensors: is not a checkpoint, or is damaged"):
        load_engine(path)


def test_exporting_what_cannot_be(checkpoint, tmp_path):
    with pytest.raises(UserError, match="format: found keras; expected one of onnx, openvino, safetensors"):
        export_bundle(load_bundle(checkpoint), "keras", tmp_path)
