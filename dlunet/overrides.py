"""Command-line overrides: paths and names are quoted for Hydra, whatever characters they contain.

In Hydra's grammar for values, ``=``, brackets, quotes, blanks and non-ASCII letters are special or not allowed. The
values of settings that name files, folders or classes are therefore quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

#: The settings that are paths or names of cases, or lists of these, ``[A,B]``, or names of experiments.
LITERALS = frozenset(
    {
        "batch",
        "cases",
        "ceiling",
        "checkpoint",
        "data.prepared",
        "data.pseudo_labels",
        "data.root",
        "data.splits",
        "data.unlabelled",
        "floor",
        "hydra.sweep.dir",
        "images",
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
    """Quote the arguments as Hydra's grammar requires.

    Args:
        arguments: Overrides and flags of the command line.
        sweep: Whether commas separate the values of a sweep.
    """
    return [_quoted_argument(argument, sweep) for argument in arguments]


def override(key: str, value: str | Path) -> str:
    """One override whose value is taken literally."""
    return f"{key}={_quote(str(value))}"


def _quoted_argument(argument: str, sweep: bool) -> str:
    match = _OVERRIDE.fullmatch(argument)
    if match is None or match[3] in ("", "null", "???"):
        return argument
    key, value = match[1] + match[2], match[3]
    if match[2] in NAMES and _is_list(value):
        return f"{key}={_quoted_value(value)}"
    if match[2] not in LITERALS:
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
    """A value without the quotes of Hydra's grammar, and with ``~`` expanded."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and not _exists(value):
        value = value[1:-1].replace(f"\\{value[0]}", value[0])
    return str(Path(value).expanduser()) if value.startswith("~") else value


def _exists(value: str) -> bool:
    try:
        return Path(value).exists()
    except OSError:  # longer than a file name may be
        return False


def _split(values: str) -> Iterator[str]:
    """Split at commas outside quotes."""
    for item in re.findall(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,])+""", values):
        if item.strip():
            yield item.strip()


def _quote(value: str) -> str:
    """Enclose in single quotes; in Hydra's grammar a backslash is special only before a quote."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
