"""Prints the lowest versions that pyproject.toml allows, as pip's constraints: ``make test-lowest`` installs these.

PyTorch is left as constraints.txt has it: of its older versions there may be no build without CUDA, which is gigabytes.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Print a line for each dependency with a lower bound."""
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
