"""The light U-Net written out in float64, and random networks whose gradients rounding changes little."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dlunet.networks import LightUNet

ONE, FLAT, CUBE = (1, 1, 1), (1, 3, 3), (3, 3, 3)


def parameters_of(network):
    """The parameters in float64, by name."""
    return {
        name: parameter.detach().double().requires_grad_(parameter.requires_grad)
        for name, parameter in network.named_parameters()
    }


def written_out(network, parameters, x, watch=lambda name, mean, deviation, values: None, noise=0.0):
    """The logits of every level, finest first.

    Args:
        network: A light U-Net; only its strides are used.
        parameters: By name.
        x: The input.
        watch: Called before each activation with the name of its normalisation, the mean and the standard deviation of
            each channel, and the normalised values without their bias.
        noise: Random relative errors of intermediate values, of single ones and of whole channels, and thus also of the
            gradients that arrive at them.
    """

    def stored(values):
        if not noise:
            return values
        of_channels = torch.randn(values.shape[1], 1, 1, 1, dtype=values.dtype)
        return values * (1 + noise * torch.randn_like(values)) * (1 + noise * of_channels)

    def conv(name, x, stride=ONE):
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        padding = [size // 2 for size in weight.shape[2:]]
        return stored(F.conv3d(x, weight, bias, stride, padding, groups=x.shape[1] // weight.shape[1]))

    def separable(name, x, stride=ONE):
        return conv(f"{name}.1", conv(f"{name}.0", x, stride))

    def activated(name, x):
        # F.instance_norm refuses a single voxel.
        mean = stored(x.mean((2, 3, 4), keepdim=True))
        deviation = stored((x.var((2, 3, 4), correction=0, keepdim=True) + 1e-5).sqrt())
        values = parameters[f"{name}.weight"][:, None, None, None] * (x - mean) / deviation
        watch(name, mean, deviation, values)
        return F.leaky_relu(stored(values) + stored(parameters[f"{name}.bias"][None, :, None, None, None]), 0.01)

    def stage(name, x, stride=ONE):
        first = separable(f"{name}.conv1", x, stride)
        return activated(f"{name}.norm2", first + separable(f"{name}.conv2", activated(f"{name}.norm1", first)))

    def upsampled(name, x, stride):
        weight = parameters[f"{name}.0.weight"]
        return conv(f"{name}.1", stored(F.conv_transpose3d(x, weight, stride=stride, groups=len(weight))))

    skips = []
    for level, stride in enumerate([ONE, *network.strides]):
        skips.append(x := stage(f"encoder.{level}", x, stride))
    skips.pop()
    logits = []
    for level, stride in enumerate(network.strides[::-1]):
        x = torch.cat([upsampled(f"decoder.{level}.up", x, stride), skips.pop()], dim=1)
        x = stage(f"decoder.{level}.stage", x)
        if f"decoder.{level}.head.weight" in parameters:
            logits.insert(0, conv(f"decoder.{level}.head", x))
    return logits


@dataclass
class Sensitivity:
    """How much rounding can change a network's gradients.

    Attributes:
        kink: The smallest argument of an activation. At 0 the slope changes 100-fold: an argument within rounding of 0
            changes gradients by far more than rounding does, in any implementation.
        offset: The largest mean of a channel in its standard deviations, by which a normalisation multiplies errors.
    """

    kink: float = float("inf")
    offset: float = 0

    @classmethod
    def of(cls, network, x):
        found, parameters = cls(), parameters_of(network)

        def watch(name, mean, deviation, values):
            arguments = values + parameters[f"{name}.bias"][:, None, None, None]
            found.kink = min(found.kink, arguments.abs().min().item())
            found.offset = max(found.offset, (mean / deviation).abs().max().item())

        with torch.no_grad():
            written_out(network, parameters, x.double(), watch)
        return found


def random_network(x, **settings):
    """A light U-Net in training mode, with random parameters of the usual size, and none of its kinks nearby.

    Weights keep away from 0, since a channel with tiny weights is almost constant.
    """
    network = LightUNet(in_channels=x.shape[1], **settings).train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                size = parameter.std(correction=0) if parameter.numel() > 9 else 1
                parameter.uniform_(0.5, 1.5).mul_(size).mul_(torch.randn_like(parameter).sign())
            elif "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 2)
            else:
                parameter.normal_()
    move_from_kinks(network, x)
    return network


def move_from_kinks(network, x):
    """Move the biases of the normalisations such that no activation has an argument close to 0 for an input.

    Each moves to the middle of the widest gap near it.
    """
    parameters, own = parameters_of(network), dict(network.named_parameters())

    def watch(name, mean, deviation, values):
        kinks = (-values).movedim(1, 0).flatten(1).sort(dim=1).values
        kinks = torch.cat([kinks[:, :1] - 0.1, kinks, kinks[:, -1:] + 0.1], dim=1)
        middles, widths = (kinks[:, 1:] + kinks[:, :-1]) / 2, kinks.diff(dim=1)
        bias = own[f"{name}.bias"]
        distances = (middles - bias[:, None]).abs()
        is_near = distances <= distances.amin(dim=1, keepdim=True) + 0.25
        widest = torch.where(is_near, widths, -1).argmax(dim=1, keepdim=True)
        bias.copy_(middles.gather(1, widest)[:, 0])
        parameters[f"{name}.bias"] = bias.double()

    with torch.no_grad():
        written_out(network, parameters, x.double(), watch)


def loss_of(logits):
    """Cross entropy against fixed random classes, with each level's own weight; of one class: a squared error."""
    generator, total = torch.Generator().manual_seed(0), 0
    for level, of_level in enumerate(logits):
        classes, size = of_level.shape[1], (len(of_level), *of_level.shape[2:])
        targets = torch.randint(max(classes, 2), size, generator=generator)
        double = of_level.double()
        loss = F.cross_entropy(double, targets) if classes > 1 else (double[:, 0] - targets).square().mean()
        total = total + loss * 0.5**level
    return total


def exact_results(network, x, loss_of, noise=0.0):
    """The loss, and by name the logits and the gradients of the parameters and the input, in float64."""
    parameters, x = parameters_of(network), x.detach().double().requires_grad_(x.requires_grad)
    logits = written_out(network, parameters, x, noise=noise)
    loss = loss_of(logits)
    loss.backward()
    return loss, results(logits, parameters.items(), x)


def results(logits, parameters, x):
    """By name: the logits of each level and all gradients."""
    named = {f"logits {level}": of_level.detach() for level, of_level in enumerate(logits)}
    return {**named, **{name: parameter.grad for name, parameter in parameters}, "input": x.grad}


def is_zero_by_construction(name):
    """Whether a gradient is zero: a normalisation removes the biases of the convolutions before it."""
    return ".conv" in name and name.endswith(".bias")


def errors_of(found, expected):
    """By name: the largest error of a tensor as a fraction of its largest value."""
    assert found.keys() == expected.keys()
    assert all((found[name] is None) == (value is None) for name, value in expected.items())
    values = {name: value for name, value in expected.items() if value is not None}
    largest = max(value.abs().max() for name, value in values.items() if "logits" not in name)
    errors = {}
    for name, value in values.items():
        assert found[name].shape == value.shape, name
        size = largest if is_zero_by_construction(name) else value.abs().max()
        errors[name] = float((found[name].double() - value).abs().max() / size)
    return errors
