"""Create the method described by a config, and check what it declares."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from dlunet.errors import UserError
from dlunet.methods.base import Method

#: The stream that every method has.
LABELLED = "labelled"


def method_of(config: DictConfig) -> Method:
    """The method of a composed config, see ``conf/method``.

    Raises:
        UserError: Its declaration contradicts itself.
    """
    method = instantiate(config.method)
    if not isinstance(method, Method):
        raise UserError(f"method: found {type(method).__name__}; expected a subclass of dlunet.methods.Method")
    for problem in (_wrong_role(method), _wrong_stream(method)):
        if problem:
            raise UserError(f"method {type(method).__name__}: {problem}")
    return method


def _wrong_role(method: Method) -> str | None:
    unknown = [role for role in method.predicting if role not in method.networks]
    if unknown or not method.predicting:
        return f"predicts: found {unknown or 'no role'}; expected roles of its networks: {', '.join(method.networks)}"
    for role, average in method.averaged.items():
        if average.of not in method.trained:
            return f"networks: {role} averages {average.of!r}; expected a trained role: {', '.join(method.trained)}"
    return None


def _wrong_stream(method: Method) -> str | None:
    if LABELLED not in method.streams or not method.streams[LABELLED].labelled:
        return f"streams: found {', '.join(method.streams)}; expected a stream {LABELLED!r} with labelled=True"
    before: list[str] = []
    for name, stream in method.streams.items():
        if stream.other_than is not None and stream.other_than not in before:
            return (
                f"streams: {name} is other_than={stream.other_than!r}; expected a stream before it: "
                f"{', '.join(before) or 'there is none'}"
            )
        before.append(name)
    return None
