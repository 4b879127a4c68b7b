"""What `racm3 memory` makes of data as people have it: nothing is removed, or erased, because it could not be read."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from racm3 import cli
from racm3.memory.memory import Memory

CAPTIONS = [f"a toy {i} on a shelf" for i in range(4)]


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (24, 20), (50 * i % 256, 60, 90 * i % 256)).save(folder / f"{i}.png")
    return folder


def write_jsonl(folder: Path, text: str = "text", broken: int | None = None) -> None:
    lines = [json.dumps({"file_name": f"{i}.png", text: caption}) for i, caption in enumerate(CAPTIONS)]
    if broken is not None:
        lines[broken] = lines[broken].rstrip("}")
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_csv(folder: Path, broken: int | None = None) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((f"{i}.png", text) for i, text in enumerate(CAPTIONS))])
    if broken is not None:
        text = (folder / "metadata.csv").read_text()
        (folder / "metadata.csv").write_text(text.replace(CAPTIONS[broken], "a toy, on a shelf"))


def write_coco(folder: Path, broken: int | None = None) -> None:
    images = [{"id": i, "file_name": None if i == broken else f"{i}.png"} for i in range(4)]
    captions = [{"image_id": i, "caption": caption} for i, caption in enumerate(CAPTIONS)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": captions}))


def write_words(folder: Path, broken: int | None = None) -> None:
    """Texts under ids of their own."""
    lines = [json.dumps({"id": f"word-{i}", "text": caption}) for i, caption in enumerate(CAPTIONS)]
    if broken is not None:
        lines[broken] = lines[broken][:-2]
    (folder / "words.jsonl").write_text("\n".join(lines))


@pytest.fixture
def sync(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    """Runs `memory sync` on tmp_path/memory, made of ``before`` first; its status, what it says, and the ids then."""

    def run(before: Path, after: Path, *flags: str) -> tuple[int, str, list[str]]:
        memory = tmp_path / "memory"
        if not memory.exists():
            assert cli.main(["memory", "create", str(memory), str(before)]) == 0
        capsys.readouterr()
        status = cli.main(["memory", "sync", str(memory), str(after), *flags])
        printed = capsys.readouterr()
        return status, printed.out + printed.err, sorted(Memory.open(memory).ids)

    return run


@pytest.mark.parametrize("moved", [False, True], ids=["in place", "moved"])
@pytest.mark.parametrize("write", [write_jsonl, write_csv, write_coco, write_words])
def test_a_row_that_cannot_be_read_removes_nothing(
    tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]], write: Callable[..., None], moved: bool
) -> None:
    before = pictures(tmp_path / "before", 4)
    after = pictures(tmp_path / "after", 4) if moved else before
    write(before)
    made = sync(before, before)[2]
    write(after, broken=1)
    status, said, ids = sync(before, after)
    assert (status, ids) == (0, made)
    assert "1 broken" in said
    assert "remove" not in said.replace("none of them is removed", "")
    write(after)
    (after / "3.png").unlink()
    for file in after.glob("metadata*"):  # once all can be read, what is gone is removed
        file.write_text("\n".join(line for line in file.read_text().splitlines() if "3.png" not in line) + "\n")
    if write in (write_jsonl, write_csv):
        assert sync(before, after)[2] == made[:3]


def test_a_mistyped_name_removes_nothing(tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]]) -> None:
    folder = pictures(tmp_path / "data", 4)
    write_jsonl(folder)
    made = sync(folder, folder)[2]
    rows = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(rows.replace("1.png", "11.png"))
    status, said, ids = sync(folder, folder)
    assert (status, ids) == (0, made)
    assert "11.png; check the path; it may be any of the documents from there, so none of them is removed" in said
    (folder / "metadata.jsonl").write_text(rows.replace(rows.splitlines()[3], ""))
    (folder / "1.png").unlink()  # a name that is known stands for its own picture alone
    assert sync(folder, folder)[2] == made[:3]


def test_what_could_not_be_read_takes_no_caption_of_several(
    tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]]
) -> None:
    folder = pictures(tmp_path / "data", 1)
    five = [json.dumps({"file_name": "0.png", "text": f"toy {k}"}) + "\n" for k in range(5)]
    for lines, kept in [
        (five, 5),
        ([*five[:4], "{" + five[4]], 5),  # of no picture that is known
        ([*five[:4], five[4].replace("toy 4", "\\ud800")], 5),
        (five[:3], 3),
    ]:
        (folder / "metadata.jsonl").write_text("".join(lines))
        assert sync(folder, folder)[0] == 0
        (item,) = Memory.open(tmp_path / "memory").items()
        assert len(item.metadata["captions"]) == kept


def test_a_renamed_column_erases_no_caption(tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]]) -> None:
    folder = pictures(tmp_path / "data", 4)
    write_jsonl(folder)
    sync(folder, folder)
    write_jsonl(folder, "caption")
    assert "unchanged 4" in sync(folder, folder)[1]
    write_jsonl(folder, "words of mine")  # which nobody can know
    status, said, _ = sync(folder, folder)
    assert status == 2
    assert "would take the text or the pictures from 4 of the 4 documents that it replaces" in said
    memory = Memory.open(tmp_path / "memory")
    assert sorted(item.document.text or "" for item in memory.items()) == CAPTIONS
    assert sync(folder, folder, "--yes")[0] == 0
    assert all(item.document.text is None for item in Memory.open(tmp_path / "memory").items())


def test_a_stray_file_does_not_change_what_a_folder_is(
    tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]]
) -> None:
    folder = pictures(tmp_path / "data", 8)
    with tarfile.open(tmp_path / "backup.tar", "w") as file:
        file.add(folder / "0.png", "one.png")
    made = sync(folder, folder)[2]
    shutil.move(tmp_path / "backup.tar", folder)
    status, said, ids = sync(folder, folder, "--dry-run")
    assert (status, ids) == (0, made)
    assert "would add 1\n" in said
    assert "--yes: it was pictures, with .txt captions or none last time, and is WebDataset shards" in said
    status, said, ids = sync(folder, folder)
    assert (status, ids) == (2, made)
    assert "nothing was changed: sync would add 1." in said
    assert sync(folder, folder, "--yes")[2] == sorted([*made, "backup/one"])


def test_what_came_from_elsewhere_is_not_removed_unasked(
    tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]]
) -> None:
    folder = pictures(tmp_path / "data", 4)
    made = sync(folder, folder)[2]
    Image.new("RGB", (9, 9)).save(pictures(tmp_path / "other", 0) / "mine.png")
    assert cli.main(["memory", "add", str(tmp_path / "memory"), str(tmp_path / "other")]) == 0
    status, said, ids = sync(folder, folder)
    assert (status, ids) == (2, [*made, "mine.png"])
    assert f"would remove 1 documents, such as 'mine.png', and the memory was also filled at {tmp_path}/other" in said
    assert sync(folder, folder, "--yes")[2] == made
    (folder / "3.png").unlink()
    assert sync(folder, folder)[2] == made[:3]  # it is of one place alone now


def test_a_half_made_memory_is_not_mixed_with_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = pictures(tmp_path / "one", 3), pictures(tmp_path / "two", 4)
    Image.new("RGB", (9, 9)).save(two / "0.png")  # another picture of the same name
    create = ["memory", "create", str(tmp_path / "memory")]
    assert cli.main([*create, str(one), str(two)]) == 2
    assert "name the folder above both, in which their ids differ" in capsys.readouterr().err
    assert cli.main([*create, str(tmp_path)]) == 2
    assert f"half made of what is at {one} and at {two}; give the same again, or a new path" in capsys.readouterr().err
    assert cli.main(["memory", "create", str(tmp_path / "whole"), str(tmp_path)]) == 0
    assert len(Memory.open(tmp_path / "whole")) == 7


def test_more_than_half_is_not_removed_unasked(tmp_path: Path, sync: Callable[..., tuple[int, str, list[str]]]) -> None:
    folder = pictures(tmp_path / "data", 8)
    made = sync(folder, folder)[2]
    for i in range(5):
        (folder / f"{i}.png").unlink()
    status, said, ids = sync(folder, folder)
    assert (status, ids) == (2, made)
    assert "would remove 5 of 8 documents" in said
    assert sync(folder, folder, "--yes")[2] == made[5:]


@pytest.mark.parametrize("files", [{"README.md": b"no pictures"}, {"a.png": b"no picture"}, {"a.heic": b"\xff\x0a"}])
def test_nothing_read_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, bytes]
) -> None:
    data, memory = tmp_path / "data", tmp_path / "memory"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    assert cli.main(["memory", "create", str(memory), str(data)]) == 2
    said = capsys.readouterr().err
    assert "recognised" in said or "nothing could be read" in said
    assert not memory.exists()
    pictures(data, 2)
    assert cli.main(["memory", "create", str(memory), str(data)]) == 0
    assert capsys.readouterr().err.splitlines()[-1].startswith("2 read · 2 pictures without caption · 1 ")
