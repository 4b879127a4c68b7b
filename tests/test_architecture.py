"""docs/architecture.md is compared with the code: rooms import only from rooms below, a request goes down."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "racm3"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def picture(heading: str) -> list[str]:
    """The lines of the first block below a heading."""
    return re.split(r"^```\n", PAGE.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[1].splitlines()


def imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relative to itself"
            names = [part for alias in node.names for part in (f"{node.module}.{alias.name}", str(node.module))]
        else:
            continue
        yield from (name for name in names if name in MODULES and name not in (module, "racm3"))


IMPORTS = {module: set(imported(module)) for module in MODULES}


def room(module: str) -> str:
    return module.split(".")[1]


def needed(module: str) -> set[str]:
    """All that a module imports, by way of others too."""
    found: set[str] = set()
    todo = [module]
    while todo:
        new = IMPORTS[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError


def test_rooms_import_only_from_rooms_below() -> None:
    floors = [line.partition("   ")[0].split() for line in picture("The rooms")]
    floor = {name: number for number, names in enumerate(floors) for name in names}
    assert floor.keys() == {room(module) for module in MODULES if module != "racm3" and "racm3.weights" not in module}
    upward = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if module != "racm3" and room(module) != room(other) and floor[room(module)] >= floor[room(other)]
    }
    assert upward == set()


STEPS = [line.split()[:2] for line in picture("One caption, step by step")]


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_a_step_is_there(file: str, name: str) -> None:
    tree: ast.AST = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        defined = {node.name: node for node in ast.iter_child_nodes(tree) if hasattr(node, "name")}
        tree = defined[part]


def test_the_first_step_imports_the_others_and_none_imports_it() -> None:
    first, *others = ["racm3." + file.removesuffix(".py").replace("/", ".") for file, _ in STEPS]
    assert set(others) <= IMPORTS[first]
    assert not any(first in needed(other) for other in others)
