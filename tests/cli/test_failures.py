"""Whatever is wrong with what a command is given, or with the machine, is one line and the right exit status."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import pytest

from racm3.cli import command_line, failures, main
from racm3.model_folder import ModelFolder
from racm3.retriever.encoder import Encoder

WORKING = {
    "demo": "--models {models} --out {out}",
    "generate": "fox --models {models} --memory {memory} --out {out_picture}",
    "caption": "{picture} --models {models} --memory {memory}",
    "infill": "{picture} --mask {mask} --models {models} --memory {memory} --out {out_picture}",
    "edit": "{picture} --control {control} --mask {mask} --models {models} --out {out_picture}",
    "classify": "{picture} --models {models} --example a={picture} b={control}",
    "serve": "--models {models} --memory {memory} --token-file {tokens} --port 0",
    "train image-tokenizer": "{data} --config {config} --out {out}",
    "train encoder": "{data} --config {config} --out {out}",
    "train generator": "{data} --config {config} --image-tokenizer {image_tokenizer} --encoder {encoder} --out {out}",
    "train judge": "--config {config} --out {out}",
    "train plan": "--config {config}",
    "memory create": "{new} {data} --encoder {encoder}",
    "memory add": "{memory} {data} --encoder {encoder}",
    "memory remove": "{memory} {id}",
    "memory sync": "{memory} {data} --encoder {encoder}",
    "memory search": "{memory} --text fox --image {picture} --encoder {encoder} --out {out_picture}",
    "memory similar": "{memory} {id} --encoder {encoder}",
    "memory dedupe": "{memory} --encoder {encoder}",
    "memory stats": "{memory}",
    "memory edit": "{memory} {id} --text fox --encoder {encoder}",
    "memory info": "{memory}",
    "memory check": "{memory}",
    "memory compact": "{memory}",
    "memory index": "{memory}",
    "memory export": "{memory} --out {out}",
    "memory re-embed": "{memory} --encoder {encoder}",
    "memory neighbours": "{memory} --encoder {encoder} --out {out}",
    "memory plan": "--set documents={number}",
    "data filter": "{shards} --out {out} --encoder {encoder}",
    "scenes make": "{out} --set train={number}",
    "scenes glyphs": "--font {font} --folder {out}",
    "evaluate scenes": "--models {models} --memory {memory}",
    "evaluate coco": "{karpathy} --memory {memory} --models {models} --out {out}",
    "evaluate compare": "{result} {result}",
    "export": "--models {models} --out {out}",
}
"""Every verb that is given something, with what it is given."""
OF_PYTHON = re.compile(r"Traceback|\b(Memory|Image|Settings|Sampling|Hole|RACM3|Encoder)[.(]|Errno|\bNone\b")
FAULTS = ("missing", "text", "empty", "cut", "bytes", "below a file")
THOROUGHLY = ("infill", "memory search", "train generator", "evaluate coco", "scenes glyphs")
"""Verbs that between them are given everything there is; what the others are given is missing, or of another kind."""


def test_every_verb_is_tried() -> None:
    assert command_line.VERBS.keys() - WORKING.keys() == {"doctor"}  # which is given nothing


@pytest.fixture
def places(models: Path, memory: Path, data: Path, picture: Path, tmp_path: Path) -> dict[str, Path | str]:
    """What is given, as far as it is there, and faulty things of every kind."""
    found: dict[str, Path | str] = {"models": models, "memory": memory, "data": data, "picture": picture}
    found |= {"encoder": models / "encoder", "image_tokenizer": models / "image-tokenizer", "control": picture}
    found |= {"mask": picture, "out": tmp_path / "out", "out_picture": tmp_path / "out.png", "new": tmp_path / "new"}
    found |= {"number": "1", "id": "a red square 0"}
    (tmp_path / "text").write_text("neither a picture nor a model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").write_bytes(picture.read_bytes()[:40])
    (tmp_path / "bytes").write_bytes(bytes(range(256)) * 9)
    return found


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status and the error line of a command, of which there is one, the last."""
    capsys.readouterr()
    try:
        status = main(arguments)
    except SystemExit as ended:  # tyro's, of a word that it cannot read
        status = int(str(ended.code))
    lines = capsys.readouterr().err.splitlines()
    if status == 2 and lines[0].startswith("╭"):
        return status, "error: usage"
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], (arguments, lines)
    assert not OF_PYTHON.search(lines[-1]), lines[-1]
    return status, lines[-1]


def faulty() -> Iterator[tuple[str, str, str]]:
    """Every verb with each thing that it is given, at fault in every way that it can be."""
    for verb, given in WORKING.items():
        for name in dict.fromkeys(field for _, field, _, _ in string.Formatter().parse(given) if field):
            kinds = FAULTS if verb in THOROUGHLY else ("missing", "text")
            for fault in ("below a file",) if name.startswith(("out", "new")) else kinds:
                yield verb, name, fault


@pytest.mark.parametrize(("verb", "name", "fault"), faulty())
def test_a_fault_is_said_in_one_line(
    verb: str, name: str, fault: str, places: dict[str, Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "text" / "a.png" if fault == "below a file" else tmp_path / fault
    given = dict.fromkeys(re.findall(r"{(\w+)}", WORKING[verb]), tmp_path / "missing") | places | {name: wrong}
    status, line = said([*verb.split(), *(word.format(**given) for word in WORKING[verb].split())], capsys)
    assert status == 2, line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "new").exists()


# What the machine does to a command --------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may be longer than 64 bytes: what is written beyond fails as on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


WRITERS = ("generate", "memory create", "memory add", "memory export", "memory re-embed", "memory search", "export")


@pytest.mark.parametrize("verb", WRITERS)
def test_a_full_disk(
    verb: str, places: dict[str, Path | str], memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(memory, tmp_path / "memory")
    given = places | {"memory": tmp_path / "memory"}
    if verb == "memory add":
        PIL.Image.new("RGB", (9, 9)).save(tmp_path / "more.png")
        given["data"] = tmp_path / "more.png"
    words = [*verb.split(), *(word.format(**given) for word in WORKING[verb].split())]
    with full_disk():
        status, line = said(words, capsys)
    assert status == 1
    assert "no space left" in line or "space on the disk" in line
    assert main(["memory", "info", str(tmp_path / "memory")]) == 0
    assert main(words) == 0, "what a full disk has left is in the way of the same command"


@pytest.mark.parametrize(
    ("raised", "status", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            1,
            "there is no space left to write /a/b; free some",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "there is no space left to write; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 2, "this user may not use /a (Permission denied)"),
        (OSError(errno.EROFS, "Read-only file system", "/a"), 2, "this user may not use /a (Read-only file system)"),
        (OSError(errno.EMFILE, "Too many open files", "/a"), 1, "/a cannot be used: Too many open files"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a\n\u202eb"), 2, "a \\u202eb cannot be used"),
        (OSError("LanceError(IO): disk\nfailed"), 1, "LanceError(IO): disk failed"),
        (MemoryError(), 1, "there is not enough memory: ask for less at once"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            1,
            "there is not enough memory",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_machine_refuses(
    raised: BaseException, status: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.failure(raised) == status
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {expected}")
    assert shown.count("\n") == 1


def test_a_pipe_that_nobody_reads_ends_a_command_quietly(memory: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "racm3.cli", "memory", "info", str(memory)]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_full_device_takes_no_output(memory: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "racm3.cli", "memory", "info", str(memory)]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("error: there is no space left to write")


def test_ctrl_c_in_the_middle_of_the_work(
    places: dict[str, Path | str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["memory", "create", *(word.format(**places) for word in WORKING["memory create"].split())]
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "embed", interrupted)
        assert said(words, capsys) == (130, "error: interrupted")
    assert main(words) == 0, "what was stored before is in the way of the same command"


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_damaged_byte_of_a_model_is_said(
    places: dict[str, Path | str], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path / "models")
    for file in sorted((tmp_path / "models").glob("*/*.*")):
        if file.name not in ("config.json", "model.safetensors", "racm3.json", "tokenizer.json"):
            continue
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 0x40]) + whole[1:])
        words = f"generate fox --models {tmp_path}/models --memory {places['memory']} --out {tmp_path}/out.png".split()
        status, line = said(words, capsys)
        assert status == 2, (file, line)
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("memory search {memory} --text fox --hits 0", "--hits is 0; give 1 or more"),
        ("serve --port 99999", "--port is 99999; give 1 to 65535, or 0 for any that is free"),
        ("generate fox --out {out_picture} --seed -1", "settings.seed is -1"),
        ("generate fox --out {out_picture} --k -1", "settings.k is -1"),
        (
            "generate fox --out {out_picture} --set image.top_p=2",
            "sampling.top_p is 2.0; it must be above 0 and at most 1",
        ),
        (
            "generate fox --out {out_picture} --set image.tpo_p=.5",
            "unknown key 'image.tpo_p'; did you mean 'image.top_p'?",
        ),
        (
            "generate fox --out {out_picture} --memory {out}",
            "the memory {out} does not exist; check the path, or make it",
        ),
    ],
)
def test_a_value_is_checked_before_models_are_loaded(
    command: str,
    expected: str,
    places: dict[str, Path | str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ModelFolder, "open", interrupted)
    status, line = said([word.format(**places) for word in command.split()], capsys)
    assert status == 2
    assert line.startswith(f"error: {expected.format(**places)}")


def test_more_documents_than_the_context_holds_is_said(
    places: dict[str, Path | str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = "caption {picture} --models {models} --memory {memory} --k 8 --set max_text_tokens=4000"
    status, line = said([word.format(**places) for word in command.split()], capsys)
    assert status == 2
    assert "exceed the generator's context of" in line


def test_a_path_below_home_is_expanded(
    places: dict[str, Path | str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = "generate fox --models {models} --memory {memory} --out=~/deep/a.png"
    assert main([word.format(**places) for word in command.split()]) == 0
    assert (tmp_path / "deep" / "a.png").is_file()


def test_other_libraries_do_not_talk(places: dict[str, Path | str]) -> None:
    command = "caption {picture} --models {models} --memory {memory}"
    words = [sys.executable, "-m", "racm3.cli", *(word.format(**places) for word in command.split())]
    assert subprocess.run(words, capture_output=True, text=True).stderr == ""
