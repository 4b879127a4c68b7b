"""README and docs/ are executed: their commands parse, their files exist, the README's tree and numbers are exact."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from racm3 import cli
from racm3.cli.command_line import VERBS
from racm3.evaluation.protocol import weights_digest
from racm3.model_folder import SCENES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 150
GENERATED = {"cli.md", "results.md"}
HISTORY = {"log.md"}  # names commands and files as they were
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "docs").glob("*.md"))
    if path.name not in GENERATED | HISTORY
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BRANCHES = str.maketrans("│├└─", "    ")
FILE = re.compile(r"[\w./-]*\w\.(py|md|html|json|toml|txt|sh)")


def commands(page: str, program: str) -> list[list[str]]:
    """The words of every line in the page's code blocks that runs ``program``, without its name."""
    lines = [line for _, block in FENCED.findall(page) for line in block.replace("\\\n", " ").splitlines()]
    plain = [line.removeprefix("$ ") for line in lines]
    return [shlex.split(line, comments=True)[1:] for line in plain if line.startswith(f"{program} ")]


def tree(page: str) -> list[str]:
    """The paths in the page's drawn trees: blocks whose first word is a folder. Words that follow a folder count if
    they are file names."""
    paths: list[str] = []
    for _, block in FENCED.findall(page):
        if not re.match(r"\s*[\w.-]+/(\s|$)", block.translate(BRANCHES)):
            continue
        above: list[tuple[int, str]] = []  # (indentation, folder)
        for line in filter(str.strip, block.translate(BRANCHES).splitlines()):
            name, *rest = line.split()
            indentation = len(line) - len(line.lstrip())
            above = [(depth, folder) for depth, folder in above if depth < indentation]
            parent = above[-1][1] if above else ""
            if name.endswith("/"):
                above.append((indentation, parent + name))
                inside = [word for word in rest if FILE.fullmatch(word)]
                paths += [parent + name, *(parent + name + word for word in inside)]
            elif FILE.fullmatch(name) or name == "Makefile":
                paths.append(parent + name)
    return paths


SAMPLE = """
```sh
racm3 generate "a fox" \\
    --out fox.png  # a comment
$ racm3 doctor
make demo
```
```
racm3/
├── cli.py         racm3 demo, in a file
└── tokens/        text.py (words) markup.py
    └── image.py   codes
tests/             the same
```
"""


def test_commands_are_found() -> None:
    assert commands(SAMPLE, "racm3") == [["generate", "a fox", "--out", "fox.png"], ["doctor"]]
    assert commands(SAMPLE, "make") == [["demo"]]


def test_a_tree_is_found() -> None:
    tokens = [f"racm3/tokens/{name}" for name in ("", "text.py", "markup.py", "image.py")]
    assert tree(SAMPLE) == ["racm3/", "racm3/cli.py", *tokens, "tests/"]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


@pytest.mark.parametrize(
    ("page", "words"), [(page, words) for page, text in PAGES.items() for words in commands(text, "racm3")]
)
def test_commands_parse(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for verb in VERBS.values():
        monkeypatch.setattr(verb, "run", lambda _: 0)
    assert cli.main(words) == 0, page


def test_make_verbs_exist() -> None:
    verbs = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {verb for page in PAGES.values() for verb in re.findall(r"`make ([\w-]+)`", page)}
    assert {"test", "smoke", "check"} <= named <= verbs


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    quoted = [path for path in re.findall(r"`([\w./-]+)`", PAGES[page]) if FILE.fullmatch(path) and "/" in path]
    written = ("out/", "models/", "/")  # by the commands, or no file
    named = [path for path in quoted if not path.startswith(written)]
    assert [path for path in named if not ((ROOT / path).exists() or (ROOT / "racm3" / path).exists())] == []


def test_the_tree_is_the_file_list() -> None:
    def shown(folder: Path) -> set[str]:
        ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
        folders = {f"{path.name}/" for path in folder.iterdir() if path.is_dir() and path.name not in ignored}
        modules = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
        return {name for name in folders | modules if not name.startswith(".")}

    package = {f"racm3/{name}" for name in shown(ROOT / "racm3")}
    assert set(tree(README)) == package | {name for name in shown(ROOT) if name.endswith("/")}


RESULTS = ROOT / "docs" / "results" / "scenes_quick.json"
ROW = re.compile(r"^\| (seen|novel) \| (\w+) \|(.+)\|$", re.MULTILINE)


def expected_cells(row: str, results: dict[str, Any]) -> list[str]:
    """What the README's table says of one row: shares in %, and the scores of captions where there are any."""
    shares = [f"{100 * results[row][key]:.0f}" for key in ("entity", "background", "position", "all_correct")]
    captions = results["caption"].get(row)
    told = [f"{100 * captions[key]:.0f}" for key in ("entity_named", "position_told")] if captions else ["", ""]
    told.append(f"{captions['cider_d']:.2f}" if captions else "")
    return shares + told


def test_its_numbers_are_those_of_the_result_file() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = ROW.findall(README)
    assert len(rows) == 10  # five rows for each of two splits
    for split, row, cells in rows:
        assert [cell.strip() for cell in cells.split("|")] == expected_cells(row, results[split]), (split, row)


def test_the_results_are_of_the_shipped_weights() -> None:
    weights = json.loads(RESULTS.read_text(encoding="utf-8"))["protocol"]["weights"]
    assert weights == {name: weights_digest(SCENES / name) for name in weights}
