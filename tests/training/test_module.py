"""What the frame does for a method: networks that stay as they are, and the call after the optimiser's step."""

from types import SimpleNamespace

import lightning
import pytest
import torch

from dlunet.errors import UserError
from dlunet.labels import FLARE22, label_set
from dlunet.methods import Fixed, Method, Stream, Trained
from dlunet.networks import Bundle, build_network, describe, save_safetensors
from dlunet.preparation import Intensity, Plan
from dlunet.training.build import build_module

PATCH = (16, 32, 32)
PLAN = Plan((8.0, 8.0, 8.0), PATCH, Intensity(0, 1, 0, 1))


class Distillation(Method):
    """Learns what an earlier network sees, and notes the steps that were done."""

    predicts = "new"
    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def __init__(self, checkpoint):
        super().__init__()
        self.networks = {"new": Trained(), "old": Fixed(str(checkpoint))}
        self.steps = []

    def losses(self, step):
        new, old = step.networks["new"], step.networks["old"]
        taught = old(step.batch["labelled"]["weak"])
        assert isinstance(taught, torch.Tensor) and not taught.requires_grad  # as it predicts: one level
        return {"new": {"labelled": step.from_labels(new)["labelled"] + 0 * taught.mean()}}

    def after_step(self, step):
        self.steps.append((step.progress.step, next(step.networks["new"].parameters()).detach().clone()))


@pytest.fixture
def earlier(tmp_path):
    """``earlier(labels)`` is a checkpoint of a network for these labels."""

    def write(labels):
        network = {
            "kind": "PlainUNet", "features": [2, 4], "strides": [[1, 2, 2]], "kernel_sizes": [[3, 3, 3]] * 2,
            "num_classes": labels.num_classes,
        }  # fmt: skip
        path = tmp_path / "old.safetensors"
        bundle = Bundle(build_network(network), PLAN, labels, "", describe(network, PLAN, labels))
        save_safetensors(bundle, path)
        return path

    return write


@pytest.mark.filterwarnings("ignore")
def test_a_fixed_network_stays_as_it_is(compose, earlier, tmp_path):
    checkpoint = earlier(FLARE22)
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": f"{__name__}.Distillation", "checkpoint": str(checkpoint)}
    module = build_module(config, SimpleNamespace(labels=FLARE22, plan=PLAN))
    before = {name: value.clone() for name, value in module.networks["old"].state_dict().items()}
    image, label = torch.randn(1, 1, *PATCH), torch.randint(0, 14, (1, *PATCH))
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = [{"labelled": {"weak": image, "label": label}}] * 3
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    assert all(torch.equal(module.networks["old"].state_dict()[name], value) for name, value in before.items())
    assert [step for step, _ in module.method.steps] == [0, 1, 2]
    assert not torch.equal(module.method.steps[0][1], module.method.steps[1][1])


def test_a_fixed_network_for_other_labels_is_refused(compose, earlier):
    checkpoint = earlier(label_set("other", {1: "Bladder"}))
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": f"{__name__}.Distillation", "checkpoint": str(checkpoint)}
    with pytest.raises(UserError, match=r"old.safetensors: segments Bladder; expected the labels .*: Liver"):
        build_module(config, SimpleNamespace(labels=FLARE22, plan=PLAN))
