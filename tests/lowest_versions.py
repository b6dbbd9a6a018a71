"""Prints the lowest versions allowed by pyproject.toml as pip constraints, for ``make test-lowest``.

PyTorch keeps the version of constraints.txt: older versions may have no build without CUDA, which takes gigabytes.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print one line per dependency with a lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    wanted = [*project["dependencies"], *(one for needs in extras.values() for one in needs)]
    for requirement in wanted:
        bound = re.fullmatch(r"([\w-]+)>=([\d.]+).*", requirement)
        if bound and bound[1] != "torch":
            print(f"{bound[1]}=={bound[2]}")
    print(re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[0])


if __name__ == "__main__":
    main()
