"""What the training module does for a method: fixed networks, joint predictions, the call after the optimiser step."""

import pickle

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from dlunet.errors import UserError
from dlunet.inference import export_bundle, load_engine
from dlunet.labels import FLARE22, label_set
from dlunet.losses import DiceCrossEntropyLoss
from dlunet.methods import METHODS, Averaged, Fixed, Method, Stream, Trained
from dlunet.networks import Bundle, build_network, describe, load_bundle, register_network, save_safetensors
from dlunet.training.build import build_module, check_parts
from tests.training.short_run import PATCH, PLAN, fit


class Distillation(Method):
    """Learns from the predictions of an earlier network and records the finished steps."""

    predicts = "new"
    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def __init__(self, checkpoint):
        super().__init__()
        self.networks = {"new": Trained(), "old": Fixed(str(checkpoint))}
        self.steps = []

    def losses(self, step):
        new, old = step.networks["new"], step.networks["old"]
        taught = old(step.batch["labelled"]["weak"])
        assert isinstance(taught, torch.Tensor) and not taught.requires_grad  # evaluation mode: a single decoder level
        return {"new": {"labelled": step.from_labels(new)["labelled"] + 0 * taught.mean()}}

    def after_step(self, step):
        self.steps.append((step.progress.step, next(step.networks["new"].parameters()).detach().clone()))


@pytest.mark.parametrize(
    "settings",
    [*([f"method={name}"] for name in METHODS), ["experiment=ssl_light", "recipe=best"]],
    ids=" ".join,
)
def test_a_module_can_be_sent_to_the_processes_of_a_training(compose, settings):
    """With its moving averages, which go on as before."""
    module = build_module(compose("train", [*settings, "scale=tiny", "output=x"]), PLAN, FLARE22)
    sent = pickle.loads(pickle.dumps(module))
    for each in (module, sent):
        for role, average in each.method.averaged.items():
            trained = each.networks[average.of]
            with torch.no_grad():
                next(trained.parameters()).fill_(0.5)
            each.networks[role].update_parameters(trained)
            each.networks[role].update_parameters(trained)
    states = module.state_dict(), sent.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class Pair(Method):
    """A network and its moving average, which predict together."""

    networks = {"a": Trained(), "slow": Averaged("a", 0.5)}  # noqa: RUF012
    predicts = ("a", "slow")
    streams = {"labelled": Stream(labelled=True)}  # noqa: RUF012

    def losses(self, step):
        return {"a": step.from_labels(step.networks["a"])}


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
    module = build_module(config, PLAN, FLARE22)
    before = {name: value.clone() for name, value in module.networks["old"].state_dict().items()}
    fit(module, tmp_path)
    assert all(torch.equal(module.networks["old"].state_dict()[name], value) for name, value in before.items())
    assert [step for step, _ in module.method.steps] == [0, 1, 2]
    assert not torch.equal(module.method.steps[0][1], module.method.steps[1][1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scale", [2.0**16, 2.0**100])
def test_mixed_precision_skips_steps_that_overflow_but_not_losses_that_are_not_finite(compose, tmp_path, scale):
    config = compose("train", ["scale=tiny", "experiment=sup_light", "output=x"])
    module = build_module(config, PLAN, FLARE22)
    before = [weight.detach().clone() for weight in module.networks["a"].parameters()]

    def precision():
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))

    fit(module, tmp_path, plugins=precision())
    same = [torch.equal(*weights) for weights in zip(before, module.networks["a"].parameters(), strict=True)]
    assert all(same) == (scale > 2.0**99)
    with pytest.raises(UserError, match="step 0: gradients are not finite"):
        fit(module, tmp_path, spoilt=float("nan"), plugins=precision())


@pytest.mark.filterwarnings("ignore")
def test_gradients_that_are_not_finite_at_any_scale_stop_mixed_precision(compose, tmp_path):
    """Though the losses are: after 17 halvings of 65536, the scale is below 1."""
    module = build_module(compose("train", ["scale=tiny", "experiment=sup_light", "output=x"]), PLAN, FLARE22)
    next(module.networks["a"].parameters()).register_hook(lambda gradient: gradient * float("nan"))
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16))
    with pytest.raises(UserError, match="step 17: gradients are not finite"):
        fit(module, tmp_path, plugins=precision, max_epochs=10)
    assert precision.scaler.get_scale() == 0.5


@pytest.mark.filterwarnings("ignore")
def test_networks_that_predict_together(compose, tmp_path):
    """Validation, checkpoint and export give the mean of their logits."""
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": f"{__name__}.Pair"}
    module = build_module(config, PLAN, FLARE22)
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    module.eval()
    image, label = torch.randn(1, *PATCH), torch.randint(0, 14, PATCH)
    with torch.inference_mode():
        own, slow = (module.networks[role](image[None]) for role in ("a", "slow"))
        mean = (own + slow) / 2
        assert (own - slow).abs().max() > 1e-3 * mean.abs().max()
        module.dice.reset()
        module.validation_step({"image": image, "label": label}, 0)
        bundle = load_bundle(tmp_path / "last.ckpt")
        torch.testing.assert_close(bundle.network(image[None]), mean)
        export_bundle(bundle, "safetensors", tmp_path / "export")
        exported, engine = load_engine(tmp_path / "export", device="cpu")
        torch.testing.assert_close(engine(image[None]), mean)
    assert engine.name == "torch on cpu, float32" and exported.digest == bundle.digest
    prediction = mean[0].argmax(0)
    for organ, dice in enumerate(module.dice.compute(), start=1):
        found, true = prediction == organ, label == organ
        assert dice == pytest.approx(float(2 * (found & true).sum() / (found.sum() + true.sum())))


def test_a_fixed_network_for_other_labels_is_refused(compose, earlier):
    checkpoint = earlier(label_set("other", {1: "Bladder"}))
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": f"{__name__}.Distillation", "checkpoint": str(checkpoint)}
    with pytest.raises(UserError, match=r"old.safetensors: segments Bladder; expected the labels .*: Liver"):
        build_module(config, PLAN, FLARE22)


class Wrong(Pair):
    """A method with a mistake in what it declares or returns."""

    def __init__(self, terms=()):
        super().__init__()
        self.terms = terms

    def losses(self, step):
        loss = step.networks["a"](step.batch["labelled"]["weak"])[0].mean()
        if isinstance(self.terms, str):
            other = {"detached": loss.detach(), "vector": loss[None]}
            return {"a": {"labelled": other[self.terms]}} if self.terms in other else None
        return {role: {"labelled": loss} for role in self.terms}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"predicts": "b"}, r"Wrong: predicts: found \['b'\]; expected roles of its networks: a, slow"),
        ({"predicts": []}, "Wrong: predicts: found no role; expected"),
        ({"networks": {"a": Trained(), "slow": Averaged("b")}}, "Wrong: networks: slow averages 'b'; expected .*: a$"),
        (
            {"streams": {"unlabelled": Stream(labelled=False)}},
            "Wrong: streams: found unlabelled; expected .*'labelled'",
        ),
        ({"networks": {"a": Trained}}, "Wrong: networks: a is <class .*; expected Trained"),
        ({"networks": {"a": Trained(), "slow": Averaged("a", 9)}}, "Wrong: networks: slow has decay=9; expected"),
        ({"networks": {"a": Trained(), "training": Averaged("a")}}, "Wrong: networks: found the role 'training'"),
        ({"networks": {"a.b": Trained()}}, "Wrong: networks: found the role 'a.b'"),
        ({"networks": {"slow": Fixed("x")}}, "Wrong: networks: found none that is trained"),
        ({"streams": {"labelled": Stream(True, times=0)}}, "Wrong: streams: labelled has times=0"),
        ({"streams": {"labelled": Stream(True, views=("weak", "strnog"))}}, "Wrong: streams: labelled has views="),
        ({"streams": {"labelled": Stream(True, views="weak")}}, "Wrong: streams: labelled has views="),
        (
            {"streams": {"labelled": Stream(True), "x": Stream(False, other_than="y"), "y": Stream(False)}},
            "Wrong: streams: x is other_than='y'; expected a stream before it: labelled$",
        ),
        (
            {"streams": {"labelled": Stream(True), "x": Stream(False, other_than="labelled", pseudo_labelled=True)}},
            "Wrong: streams: x is other_than='labelled'; expected a stream of pseudo-labelled cases, too$",
        ),
        (
            {"streams": {"labelled": Stream(True), "x": Stream(True, other_than="labelled", times=2)}},
            "Wrong: streams: x has times=2 and is other_than='labelled', which has times=1; expected the same$",
        ),
        (
            {"streams": {"labelled": Stream(True, pseudo_labelled=True)}},
            "Wrong: streams: labelled has labelled=True and pseudo_labelled=True; expected one of them$",
        ),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(mistake, message, compose, monkeypatch):
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": f"{__name__}.Wrong"}
    for name, value in mistake.items():
        monkeypatch.setattr(Wrong, name, value)
    with pytest.raises(UserError, match=f"^method {message}"):
        build_module(config, PLAN, FLARE22)


class Prototypes(Pair):
    """A method with a part of its own, which nothing trains."""

    def __init__(self, trainable=True):
        super().__init__()
        self.trainable = trainable

    def setup(self, num_classes):
        self.centres = torch.nn.Parameter(torch.zeros(num_classes), requires_grad=self.trainable)


class ScaledLoss(DiceCrossEntropyLoss):
    """A loss with a part of its own, which nothing trains."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Linear(1, 1)


def test_parts_that_nothing_would_train_are_refused(compose):
    """Also before any case is prepared."""
    config = compose("train", ["scale=tiny", "output=x"])
    method, loss = config.method, config.loss
    for config.method, config.loss, message in (
        ({"_target_": f"{__name__}.Prototypes"}, loss, "method Prototypes: found the parameters centres, "),
        (method, {"_target_": f"{__name__}.ScaledLoss"}, "loss ScaledLoss: found the parameters scale.weight, scale.b"),
    ):
        for check in (lambda: build_module(config, PLAN, FLARE22), lambda: check_parts(config, FLARE22.num_classes)):
            with pytest.raises(UserError, match=f"^{message}"):
                check()
    config.method, config.loss = {"_target_": f"{__name__}.Prototypes", "trainable": False}, loss
    check_parts(config, FLARE22.num_classes)
    build_module(config, PLAN, FLARE22)


def test_something_else_than_a_method_is_refused(compose):
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": "torch.nn.Identity"}
    with pytest.raises(UserError, match=r"^method: found Identity; expected a subclass of dlunet\.methods\.Method"):
        build_module(config, PLAN, FLARE22)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("terms", "found"),
    [
        ([], "terms for no network"),
        (["a", "slow"], "terms for a, slow"),
        ("number", "NoneType"),
        ("detached", "nothing that a can minimise"),
        ("vector", "nothing that a can minimise"),
    ],
)
def test_terms_of_other_networks_than_the_trained_ones_are_refused(terms, found, compose, tmp_path):
    config = compose("train", ["scale=tiny", "output=x"])
    config.method = {"_target_": f"{__name__}.Wrong", "terms": terms}
    module = build_module(config, PLAN, FLARE22)
    with pytest.raises(UserError, match=f"^method Wrong: losses.. returned {found}; expected .*: a$"):
        fit(module, tmp_path)


@register_network
class TooManyChannels(torch.nn.Conv3d):
    """A network with one class more than it is asked for."""

    def __init__(self, in_channels, num_classes):
        super().__init__(in_channels, num_classes + 1, 3, padding=1)


@pytest.mark.filterwarnings("ignore")
def test_channels_without_a_class_are_refused(compose, tmp_path):
    config = compose("train", ["scale=tiny", "output=x", "method=supervised"])
    config.network = {"kind": "TooManyChannels", "in_channels": 1}
    module = build_module(config, PLAN, FLARE22)
    with pytest.raises(
        UserError, match=r"^network TooManyChannels: found logits of shape \(1, 15, .*expected \(1, 14,"
    ):
        fit(module, tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_gradient_norms_are_logged_as_they_were_before_clipping(compose, tmp_path, monkeypatch):
    config = compose("train", ["scale=tiny", "output=x", "optimizer.gradient_clip=0.01"])
    config.method = {"_target_": f"{__name__}.Pair"}
    module = build_module(config, PLAN, FLARE22)
    norms, clip = [], module.on_before_optimizer_step

    def watch(optimizer):
        norms.append(norm_of(module.networks["a"]))
        clip(optimizer)
        assert norm_of(module.networks["a"]) == pytest.approx(0.01, rel=1e-3)

    monkeypatch.setattr(module, "on_before_optimizer_step", watch)
    logged = fit(module, tmp_path).callback_metrics
    assert norms[-1] > 0.02 and float(logged["train/gradient_norm_a"]) == pytest.approx(norms[-1], rel=1e-5)


def norm_of(network):
    return float(
        sum(weight.grad.double().square().sum() for weight in network.parameters() if weight.grad is not None).sqrt()
    )
