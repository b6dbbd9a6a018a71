"""The ONNX graph computes what the network does, in ONNX's reference evaluator and in ONNX Runtime."""

import numpy as np
import pytest
import torch
from torch import nn

from dlunet.networks import LightUNet, PlainUNet

pytest.importorskip("onnx")
from onnx.reference import ReferenceEvaluator

from dlunet.networks.onnx_graph import to_onnx

SETTINGS = {
    "num_classes": 3,
    "features": (2, 3, 4),
    "strides": ((1, 2, 2), (2, 2, 2)),
    "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
PATCH = (4, 8, 12)


def network(kind, **settings):
    torch.manual_seed(0)
    made = kind(**settings).eval()
    for module in made.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.uniform_(module.weight, 0.5, 2)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)
    return made


@pytest.mark.parametrize("kind", [LightUNet, PlainUNet])
@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_graph_gives_the_finest_logits(kind, deep_supervision):
    made = network(kind, deep_supervision=deep_supervision, **SETTINGS)
    x = torch.randn(1, 1, *PATCH)
    with torch.inference_mode():
        expected = made(x).numpy()
    (logits,) = ReferenceEvaluator(to_onnx(made, PATCH)).run(["logits"], {"image": x.numpy()})
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.ptp(expected))


def test_the_papers_network_in_onnx_runtime():
    onnxruntime = pytest.importorskip("onnxruntime")
    made, x = network(LightUNet), torch.randn(1, 1, 16, 64, 64)
    session = onnxruntime.InferenceSession(to_onnx(made, x.shape[2:]).SerializeToString())
    with torch.inference_mode():
        expected = made(x).numpy()
    logits = session.run(["logits"], {"image": x.numpy()})[0]
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.ptp(expected))


def test_a_layer_that_it_does_not_know():
    made = network(LightUNet, **SETTINGS)
    made.encoder[0].activation = nn.Softplus()
    with pytest.raises(TypeError, match="no ONNX operation for Softplus"):
        to_onnx(made, PATCH)
