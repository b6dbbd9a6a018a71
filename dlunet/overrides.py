"""Settings on the command line: a path is a path, whatever characters are in it.

Hydra has a grammar for values, in which ``=``, brackets, quotes, blanks and letters beyond ASCII have a meaning or
none. The values of the settings that name files, folders or organs are put into quotes for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

#: The settings that are paths, or lists of paths, ``[A,B]``.
PATHS = frozenset(
    {
        "checkpoint",
        "data.prepared",
        "data.pseudo_labels",
        "data.root",
        "data.splits",
        "data.unlabelled",
        "hydra.sweep.dir",
        "input",
        "labels",
        "output",
        "predictions",
        "references",
        "runs",
    }
)

#: The settings that are lists of names.
NAMES = frozenset({"data.names"})

_OVERRIDE = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)


def quote_literals(arguments: Sequence[str], sweep: bool) -> list[str]:
    """The arguments as Hydra understands them.

    Args:
        arguments: Of the command line, overrides and flags.
        sweep: Whether several values are tried one after the other: commas stand between them.
    """
    return [_quoted_argument(argument, sweep) for argument in arguments]


def override(key: str, value: str | Path) -> str:
    """One override with a value that is taken as it stands."""
    return f"{key}={_quote(str(value))}"


def _quoted_argument(argument: str, sweep: bool) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or match[3] in ("", "null", "???"):
        return argument
    key, value = match[1] + match[2], match[3]
    if match[2] in NAMES and _is_list(value):
        return f"{key}={_quoted_value(value)}"
    if match[2] not in PATHS:
        return argument
    values = [value] if not sweep or _exists(value) else list(_split(value))
    return f"{key}={','.join(map(_quoted_value, values))}"


def _quoted_value(value: str) -> str:
    if _is_list(value):
        return f"[{','.join(_quote(_literal(item)) for item in _split(value[1:-1]))}]"
    return _quote(_literal(value))


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]") and not _exists(value)


def _literal(value: str) -> str:
    """A value without the quotes that Hydra's grammar wants, and with the home folder for ``~``."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and not _exists(value):
        value = value[1:-1].replace(f"\\{value[0]}", value[0])
    return str(Path(value).expanduser()) if value.startswith("~") else value


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except OSError:  # longer than names can be
        return False


def _split(values: str) -> Iterator[str]:
    """The values between commas that do not stand in quotes."""
    for item in re.findall(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,])+""", values):
        if item.strip():
            yield item.strip()


def _quote(value: str) -> str:
    """In Hydra's single quotes: a backslash only counts before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
