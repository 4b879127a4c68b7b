from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from racm3.cli import main
from racm3.cli.option_blocks import load_encoder
from racm3.document import Image
from racm3.memory.memory import Memory
from tests.cli.as_typed import run, train_encoder


def test_searching_prints_documents_with_scores(
    memory: Path, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((data / "images").glob("a%20red*"))
    arguments = ["--text", "a red square", "--image", str(picture), "--hits", "4", "--encoder", str(encoder)]
    assert main(["memory", "search", str(memory), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2] for line in lines] == ["a red square"] * 4
    assert lines[0].startswith("1.000  ")


def test_a_memory_of_data_that_is_partly_broken(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(7):
        Image(np.full((20, 30, 3), i, np.uint8)).pil.save(data / f"{i}.png")
    (data / "0.txt").write_text("a black\npicture " * 9)
    (data / "3.png").write_text("no picture")
    places = {"memory": tmp_path / "new" / "memory", "data": data, "encoder": encoder}
    command = "memory create {memory} {data} --encoder {encoder}"

    assert run(command + " --strict", **places) == 2
    assert "3.png is broken" in capsys.readouterr().err
    assert not places["memory"].exists()

    assert run(command, **places) == 0
    printed = capsys.readouterr()
    lines = printed.err[printed.err.index("reading") :].splitlines()
    assert lines[:2] == [
        f"reading {data} as pictures, with .txt captions or none; the first documents:",
        "  0.png  'a black picture a black picture a black picture a black p...'  30 x 20 px",
    ]
    assert [line.split()[0] for line in lines[2:6]] == ["1.png", "2.png", "4.png", "5.png"]
    report = tmp_path / "new" / "memory.skipped.jsonl"
    assert lines[-1] == f"6 read · 5 pictures without caption · 1 broken: {report}"
    (skipped,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert (skipped["origin"], "is not a picture" in skipped["reason"]) == (str(data / "3.png"), True)
    assert f"{places['memory']} holds 6" in printed.out

    Image(np.zeros((9, 9, 3), np.uint8)).pil.save(tmp_path / "more.png")
    assert run("memory add {memory} {data} --encoder {encoder}", **(places | {"data": tmp_path / "more.png"})) == 0
    assert not report.exists()


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_life_of_a_memory(
    data: Path,
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    place: str,
) -> None:
    folder, out = tmp_path / "memory", tmp_path / "out"
    memory = folder if place == "folder" else f"{request.getfixturevalue('bucket')}/memory"
    monkeypatch.chdir(tmp_path)  # where the report of a bucket's skipped items would go

    def says(command: str, status: int = 0) -> str:
        places = {"memory": memory, "data": data, "encoder": encoder, "out": out}
        assert main([word.format(**places) for word in command.split()]) == status
        return capsys.readouterr().out

    assert says("memory create {memory} {data} --encoder {encoder}").startswith("added 12;")
    assert says("memory add {memory} {data} --encoder {encoder}").startswith("unchanged 12;")
    (first, *_) = says("memory search {memory} --text fox --encoder {encoder} --out {out}/hits.png").splitlines()
    with PIL.Image.open(out / "hits.png") as sheet:
        assert sheet.width > sheet.height
    gone = first.split("  ")[1]
    assert main(["memory", "remove", str(memory), gone]) == 0
    assert f"{memory} holds 11 documents" in capsys.readouterr().out
    assert says("memory sync {memory} {data} --encoder {encoder}").startswith("added 1, unchanged 11;")
    assert says("memory check {memory}") == "12 documents are sound, 0 are damaged\n"
    assert "1 now" in says("memory compact {memory}")
    assert says("memory export {memory} --out {out}/shards").startswith("wrote 12 documents to 1 shards")
    assert says("memory sync {memory} {out}/shards --encoder {encoder}").startswith("unchanged 12;")
    assert says("memory neighbours {memory} --out {out}/near --encoder {encoder}").startswith(
        "wrote the neighbours of 12"
    )
    assert len(pq.read_table(out / "near")) == 12 * 4
    assert "holds 12 documents" in says("memory re-embed {memory} --encoder {encoder}")
    if place == "bucket":
        assert "documents  12\n" in says("memory info {memory}")
        return
    min((folder / "data").iterdir(), key=lambda file: file.stat().st_size).write_bytes(b"")
    assert "12 are damaged and were removed" in says("memory check {memory} --repair", status=1)
    assert says("memory info {memory}").startswith("documents  0\n")


def test_info_counts_the_documents(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "info", str(memory)]) == 0
    assert capsys.readouterr().out.startswith("documents  12\n")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (
            "memory create {memory} {data} --encoder {encoder}",
            "error: the memory {memory} is there already, with 12 documents; add to it with `racm3 memory add`",
        ),
        ("memory create {new} {data}/nowhere --encoder {encoder}", "error: there is no"),
        ("memory remove {memory} nothing", "error: the memory {memory} holds no document 'nothing'; nothing was"),
        ("memory remove {memory}", "error: no documents were named"),
        ("memory sync {memory} {data}/nowhere --encoder {encoder}", "error: there is no"),
        ("memory search {memory} --text fox --where a~1 --encoder {encoder}", "error: 'a~1' is no condition"),
        ("memory search {memory} --text fox --out {new}.txt --encoder {encoder}", "error: a picture cannot be written"),
        ("memory add {memory} --encoder {encoder}", "error: no documents were given"),
        ("memory add {memory} {data} --encoder {new}", "error: the encoder folder"),
        ("memory search {memory} --encoder {encoder}", "error: nothing to look for was given"),
        ("memory search {memory} --text= --encoder {encoder}", "error: the text is empty"),
        ("memory search {memory} --image {new} --encoder {encoder}", "error: there is no file"),
        ("memory search {new} --text fox --encoder {encoder}", "error: the memory {new} does not exist"),
        ("memory info {data}", "error: the memory {data} is no memory"),
        ("train encoder {data} --out {new} --set rate=1", "error: unknown key 'rate'"),
        ("train encoder {data} --out {new} --config {new}.toml", "error: there is no configuration file {new}.toml"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_made(
    arguments: str,
    printed: str,
    memory: Path,
    data: Path,
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"memory": memory, "data": data, "encoder": encoder, "new": tmp_path / "new"}
    assert main([word.format(**places) for word in arguments.split()]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith(printed.format(**places))
    assert list(tmp_path.iterdir()) == []


def test_a_memory_made_by_another_encoder_is_refused(
    memory: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_encoder(data, tmp_path, "loop.seed=1") == 0
    assert main(["memory", "search", str(memory), "--text", "fox", "--encoder", str(tmp_path)]) == 2
    assert "was made by encoder" in capsys.readouterr().err


def test_the_upkeep_of_a_memory(
    memory: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(command: str) -> str:
        assert run(command, memory=memory, encoder=encoder) == 0
        return capsys.readouterr().out

    opened = Memory.open(memory)
    first = opened.ids[0]
    (item,) = opened.get([first])
    lines = says(f"memory similar {{memory}} '{first}' --hits 3 --encoder {{encoder}}").splitlines()
    assert len(lines) == 3  # before any is removed
    assert all(f"  {first}  " not in line for line in lines)
    vectors = load_encoder(encoder).embed([item.document])
    opened.add([replace(item, id="copy")], vectors)
    assert says("memory dedupe {memory} --above 0.99999 --encoder {encoder}").splitlines()[0].startswith(f"{first}  ")
    assert " documents removed" in says("memory dedupe {memory} --above 0.99999 --remove --encoder {encoder}")
    assert "copy" not in list(Memory.open(memory).ids)
    left = len(Memory.open(memory))  # equal squares are copies as well
    assert f"documents  {left}\nkinds      text and image {left}" in says("memory stats {memory}")
    assert "was changed" in says(f"memory edit {{memory}} '{first}' --text fox --metadata n=3 --encoder {{encoder}}")
    (changed,) = Memory.open(memory).get([first])
    assert (changed.document.text, changed.metadata["n"], changed.document.images) == ("fox", 3, item.document.images)
    (line, why, *_) = says("memory search {memory} foxes --explain --encoder {encoder}").splitlines()
    assert line.split("  ")[1] == first
    assert why.strip().startswith("words 1.000, vectors ")
    assert run("memory edit {memory} nothing --encoder {encoder}", memory=memory, encoder=encoder) == 2
