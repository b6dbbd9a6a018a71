"""Plug-ins: your own folder of Python files and configs, given by Hydra's flag ``--config-dir``.

Hydra finds the folder's configs, such as ``method/NAME.yaml``. This module imports its Python files, so that configs
can refer to their classes and their registrations take effect.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

from dlunet.errors import UserError

#: The spellings of the flag.
FLAGS = ("--config-dir", "-cd")


def take_folder(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The command line with flag and value joined in one word, and the plug-in folder, if any.

    Raises:
        UserError: The folder does not exist.
    """
    words, folder = list(arguments), None
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in FLAGS:
            value = value or next(iter(words[place + 1 : place + 2]), "")
            folder = Path(value).expanduser()
            if not value or not folder.is_dir():
                raise UserError(f"{FLAGS[0]}: found no folder {value}; expected a folder of plug-ins")
            folder = folder.resolve()
            words[place : place + 1 + (word in FLAGS)] = [f"{FLAGS[0]}={folder}"]
            break
    return words, folder


def search_path(folder: Path) -> str:
    """The override that makes Hydra find a folder's configs where there is no command line."""
    return f"hydra.searchpath=['file://{folder}']"


def load_plugins(folder: Path) -> None:
    """Import the Python files of a folder.

    Raises:
        UserError: A file cannot be imported, or has the name of another module.
    """
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for file in sorted(folder.glob("*.py")):
        try:
            module = import_module(file.stem)
        except Exception as error:  # whatever is wrong with a user's file
            raise UserError(f"{file}: cannot be imported ({_place(error, file)}); correct the file") from error
        if Path(module.__file__ or "").resolve() != file.resolve():
            raise UserError(
                f"{file}: a module named {file.stem} already exists ({module.__file__}); choose another file name"
            )


def is_another(known: Any, new: Any) -> bool:
    """Whether two classes or functions differ in where they are defined: one that is imported again is the same."""
    return (known.__module__, known.__qualname__) != (new.__module__, new.__qualname__)


def _place(error: Exception, file: Path) -> str:
    """The error and the last line of the file that led to it."""
    lines = [frame.lineno for frame in extract_tb(error.__traceback__) if Path(frame.filename) == file]
    line = error.lineno if isinstance(error, SyntaxError) else next(reversed(lines), None)
    return f"{type(error).__name__}{f' in line {line}' if line else ''}: {error}"
