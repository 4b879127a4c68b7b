from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import make_dataclass
from pathlib import Path

import pytest

from racm3 import errors
from racm3.cli import command_line, main

ROOT = Path(__file__).parents[2]
PYTHON = {"cwd": ROOT, "capture_output": True, "text": True}


@pytest.mark.parametrize("command", ["", *command_line.VERBS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {'racm3 ' + command}".strip())


def test_verbs_are_named_after_their_commands() -> None:
    for words, verb in command_line.VERBS.items():
        assert verb.__name__ == words.replace("-", " ").title().replace(" ", "")


def known(monkeypatch: pytest.MonkeyPatch, do: Callable[[], int | None]) -> None:
    """Have the command line know nothing but two verbs that do this."""
    kind = make_dataclass("Verb", [], namespace={"run": lambda self: do()})
    monkeypatch.setattr(command_line, "VERBS", {"verb": kind, "other": kind})


def test_the_help_page_is_the_help() -> None:
    made = subprocess.run([sys.executable, "docs/make_cli.py"], env={"PYTHONPATH": str(ROOT)}, **PYTHON, check=True)
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run make docs"


def test_help_loads_no_room() -> None:
    code = (
        "import sys, racm3.cli\n"
        "try: racm3.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lance', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], **PYTHON).stderr == ""


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        (errors.ConfigError("no\nsuch key"), 2, "error: no such key\n"),
        (ModuleNotFoundError("No module named 'emoji'"), 2, "error: No module named 'emoji'; run racm3 doctor"),
        (KeyboardInterrupt("stopped and saved"), 130, "error: stopped and saved\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_an_expected_error_is_one_line(
    raised: BaseException,
    status: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise raised

    known(monkeypatch, fail)
    assert main(["verb"]) == status
    shown = capsys.readouterr().err
    assert shown.startswith(printed)
    assert shown.count("\n") == 1


def test_a_defect_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    known(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):  # RACM3_TRACEBACK is set in all tests
        main(["verb"])
    monkeypatch.delenv("RACM3_TRACEBACK")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["verb"]) == 1
    (file,) = tmp_path.iterdir()
    assert capsys.readouterr().err.startswith(f"error: a defect of racm3: ZeroDivisionError: ; {file} says where")
    assert "in fail\n    raise ZeroDivisionError" in file.read_text()


@pytest.mark.parametrize("status", [None, 0, 1])
def test_a_verb_gives_the_exit_status(status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, lambda: status)
    assert main(["verb"]) == (status or 0)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["doctor", "--nonsense"], ["scenes"], ["scenes", "nonsense"], ["scenes", "make"]]
)
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_an_unknown_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenes", "make", str(tmp_path), "--set", "trian=3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown key 'trian'; did you mean 'train'?")


def test_glyphs_need_their_font(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("emoji")
    assert main(["scenes", "glyphs", "--font", str(tmp_path / "none.ttf"), "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: there is no font")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [*command_line.MOVED, "scale embed out data --workers 2", "import out --out new"])
def test_an_old_spelling_says_the_new_one(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(old.split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    words, now = next((words, now) for words, now in command_line.MOVED.items() if old.startswith(words))
    assert said == f"error: racm3 {words} is now called {now}\n"


def test_a_plugin_is_imported_before_the_verb_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_plugin.py").write_text("print('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known(monkeypatch, lambda: None)
    monkeypatch.setenv("RACM3_PLUGINS", "own_plugin, json")
    assert main(["verb"]) == 0
    assert capsys.readouterr().out == "imported\n"
    monkeypatch.setenv("RACM3_PLUGINS", "no_plugin")
    assert main(["verb"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: RACM3_PLUGINS names 'no_plugin', which cannot be imported: No module")


def test_ctrl_c_while_modules_are_imported_is_one_line() -> None:
    code = (
        "import sys, racm3.cli\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'tyro': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.exit(racm3.cli.main(['doctor']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], **PYTHON)
    assert (ran.returncode, ran.stderr) == (130, "error: interrupted\n")
