"""docs/architecture.md lists exactly the existing files, imports point one way, and files are short."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
#: Results, and files created by tools.
NOT_OURS = re.compile(r"(^|/)(__pycache__|results|[^/]*_cache)(/|$)")
#: Files that may exceed 400 lines: the synthetic anatomy.
LONG = {"dlunet/phantom/organs.py"}


def project_files():
    for folder in ("dlunet", "conf", "docs", "experiments", "benchmarks", "tests", "docker", ".ci", ".github"):
        for path in (ROOT / folder).rglob("*"):
            name = path.relative_to(ROOT).as_posix()
            if path.is_file() and not NOT_OURS.search(name):
                yield name


def test_the_page_names_every_file_and_no_other():
    named = set(re.findall(r"^- `([^`]+)`", PAGE, re.MULTILINE))
    in_folders = {name for name in named if "/" in name}
    assert in_folders == set(project_files())
    assert all((ROOT / name).is_file() for name in named)
    assert {"train.py", "predict.py", "pyproject.toml", "Makefile", "README.md"} <= named


def test_the_page_says_of_a_module_what_it_says_of_itself():
    said = dict(re.findall(r"^- `((?:dlunet|benchmarks|tests)/\S+\.py)` – (.*(?:\n  .*)*)", PAGE, re.MULTILINE))
    assert said
    for name, text in said.items():
        docstring = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) or ""
        plain = re.sub(r":\w+:`", "`", docstring.split("\n\n")[0]).replace("``", "`")
        assert text.split() == plain.split(), name


def test_imports_point_one_way():
    rooms = re.search(r"never those after it:\n(.*?)\n- ", PAGE, re.DOTALL)[1]
    order = {room: place for place, room in enumerate(re.findall(r"`(\w+)`", rooms))}
    seen = {path.stem if path.is_file() else path.name for path in (ROOT / "dlunet").iterdir()}
    assert seen - {"__init__", "__main__", "__pycache__"} == set(order)
    against = []
    for path in (ROOT / "dlunet").rglob("*.py"):
        room = path.relative_to(ROOT / "dlunet").parts[0].removesuffix(".py")
        for used in imported_rooms(ast.parse(path.read_text(encoding="utf-8"))):
            if room in order and used != room and not order[used] < order[room]:
                against.append(f"{path.relative_to(ROOT)} uses {used}")
    assert not against


def imported_rooms(tree):
    """The top-level parts of the package from which a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "dlunet":
            names = [f"dlunet.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("dlunet."))


def test_no_file_is_long():
    code = [name for name in project_files() if name.endswith((".py", ".cpp", ".h")) and name.startswith("dlunet/")]
    long = {name for name in code if len((ROOT / name).read_text(encoding="utf-8").splitlines()) > 400}
    assert long == LONG
