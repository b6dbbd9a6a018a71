"""Create the method described by a config; check what it declares and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from dlunet.errors import UserError
from dlunet.methods.base import Averaged, Fixed, Method, Step, Trained, are_terms

#: The stream that every method has.
LABELLED = "labelled"


def method_of(config: DictConfig) -> Method:
    """The method of a composed config, see ``conf/method``.

    Raises:
        UserError: It is not a method, or its declaration contradicts itself.
    """
    method = instantiate(config.method)
    if not isinstance(method, Method):
        raise UserError(f"method: found {type(method).__name__}; expected a subclass of dlunet.methods.Method")
    for problem in _problems(method):
        raise UserError(f"method {type(method).__name__}: {problem}")
    return method


def check_untrained(name: str, part: nn.Module) -> None:
    """Check that a method, after its ``setup``, or a loss has nothing to be trained: only networks are.

    Args:
        name: The setting that chooses it.
        part: The method or the loss.

    Raises:
        UserError: It has parameters that require gradients.
    """
    if found := [parameter for parameter, value in part.named_parameters() if value.requires_grad]:
        raise UserError(
            f"{name} {type(part).__name__}: found the parameters {', '.join(found)}, which no optimiser would train; "
            "expected them in a network, or, if they are not to be trained, buffers or requires_grad=False"
        )


def check_terms(method: Method, step: Step, terms: Any) -> None:
    """Check what :meth:`Method.losses` has returned.

    Raises:
        UserError: It is not a mapping of loss terms for exactly the trained networks.
    """
    expected = f"scalar tensors by name for each trained network: {', '.join(method.trained)}"
    found = None
    if not isinstance(terms, Mapping):
        found = type(terms).__name__
    elif terms.keys() != method.trained.keys():
        found = f"terms for {', '.join(map(str, terms)) or 'no network'}"
    else:
        for role, named in terms.items():
            if role not in step.learnt and not are_terms(named):
                found = f"nothing that {role} can minimise"
    if found:
        raise UserError(f"method {type(method).__name__}: losses() returned {found}; expected {expected}")


def _problems(method: Method) -> Iterator[str]:
    for name in ("networks", "predicts", "streams", "supervised_epochs"):
        if not hasattr(method, name):
            yield f"found no {name}; expected networks, predicts and streams, and a call of super().__init__()"
    yield from _wrong_networks(method)
    yield from _wrong_streams(method)


def _wrong_networks(method: Method) -> Iterator[str]:
    for role, kind in method.networks.items():
        if not isinstance(kind, Trained | Averaged | Fixed):
            yield f"networks: {role} is {kind!r}; expected Trained(), Averaged(role) or Fixed(checkpoint)"
        if not role.isidentifier() or hasattr(nn.ModuleDict, role) or role == "training":
            yield f"networks: found the role {role!r}; expected a name such as 'student'"
    if not method.trained:
        yield "networks: found none that is trained; expected at least one Trained()"
    for role, average in method.averaged.items():
        if average.of not in method.trained:
            yield f"networks: {role} averages {average.of!r}; expected a trained role: {', '.join(method.trained)}"
        if not 0 <= average.decay <= 1:
            yield f"networks: {role} has decay={average.decay}; expected a number from 0 to 1"
    unknown = [role for role in method.predicting if role not in method.networks]
    if unknown or not method.predicting:
        yield f"predicts: found {unknown or 'no role'}; expected roles of its networks: {', '.join(method.networks)}"


def _wrong_streams(method: Method) -> Iterator[str]:
    if LABELLED not in method.streams or not method.streams[LABELLED].labelled:
        yield f"streams: found {', '.join(method.streams)}; expected a stream {LABELLED!r} with labelled=True"
    before: list[str] = []
    for name, stream in method.streams.items():
        wrong = [view for view in stream.views if view != "weak" and not view.startswith("strong")]
        if isinstance(stream.views, str) or wrong:
            yield f"streams: {name} has views={stream.views!r}; expected 'weak' and names that begin with 'strong'"
        if stream.times < 1:
            yield f"streams: {name} has times={stream.times}; expected 1 or more"
        if stream.labelled and stream.pseudo_labelled:
            yield f"streams: {name} has labelled=True and pseudo_labelled=True; expected one of them"
        if stream.other_than is not None and stream.other_than not in before:
            choices = ", ".join(before) or "there is none"
            yield f"streams: {name} is other_than={stream.other_than!r}; expected a stream before it: {choices}"
        elif stream.other_than is not None and method.streams[stream.other_than].kind != stream.kind:
            yield f"streams: {name} is other_than={stream.other_than!r}; expected a stream of {stream.kind} cases, too"
        elif stream.other_than is not None and (times := method.streams[stream.other_than].times) != stream.times:
            yield (
                f"streams: {name} has times={stream.times} and is other_than={stream.other_than!r}, which has "
                f"times={times}; expected the same"
            )
        before.append(name)
