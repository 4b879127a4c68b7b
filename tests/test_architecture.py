"""docs/architecture.md is compared with the code: rooms import only from rooms below, a request goes down."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from racm3.document import Document, Hole
from racm3.pipeline import RACM3
from tests.test_pipeline import memory_path, models  # noqa: F401  (fixtures)

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


def imported(module: str, types: bool) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it; with those for type checkers alone if told."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for_types = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    skipped = set() if types else {inner for node in for_types for inner in ast.walk(node)}
    for node in (node for node in ast.walk(tree) if node not in skipped):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relative to itself"
            names = [part for alias in node.names for part in (f"{node.module}.{alias.name}", str(node.module))]
        else:
            continue
        yield from (name for name in names if name in MODULES and name not in (module, "racm3"))


def room(module: str) -> str:
    return module.split(".")[1]


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter({module: imported(module, types=False) for module in MODULES}).prepare()  # or CycleError


FLOORS = [line.partition("   ")[0].split() for line in picture("The rooms")]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def test_rooms_import_only_from_rooms_below() -> None:
    assert FLOOR.keys() == {room(module) for module in MODULES if module != "racm3" and "racm3.weights" not in module}
    upward = {
        (module, other)
        for module in MODULES
        for other in imported(module, types=True)
        if module != "racm3" and room(module) != room(other) and FLOOR[room(module)] >= FLOOR[room(other)]
    }
    assert upward == set()


STEPS = [line.split()[:2] for line in picture("One caption, step by step")]


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_a_step_is_there(file: str, name: str) -> None:
    tree: ast.AST = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    for part in name.split("."):
        defined = {node.name: node for node in ast.iter_child_nodes(tree) if hasattr(node, "name")}
        tree = defined[part]


def test_a_caption_goes_down_through_the_steps(models: Path, memory_path: Path) -> None:  # noqa: F811
    model = RACM3.from_pretrained(models, memory_path)
    expected = [(str(PACKAGE / file), name) for file, name in STEPS]
    steps: list[tuple[str, str]] = []
    upward: set[tuple[str, str]] = set()

    def floor(file: str) -> int:
        return FLOOR[Path(file).relative_to(PACKAGE).parts[0].removesuffix(".py")]

    def called(frame: FrameType, event: str, _: object) -> None:
        file, name, caller = frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_back
        if event != "call" or not file.startswith(str(PACKAGE)) or caller is None:
            return
        if (file, name) in expected and (file, name) not in steps:
            steps.append((file, name))
        by = caller.f_code.co_filename
        if by.startswith(str(PACKAGE)) and floor(by) > floor(file) and not name.endswith("<genexpr>"):  # one is data
            upward.add((by, name))

    sys.setprofile(called)
    try:
        model.complete([Document.of("a fox in the snow", Hole("image"))])
    finally:
        sys.setprofile(None)
    assert steps == expected
    assert upward == set()
