from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3.data import item as limits
from racm3.data import read
from racm3.document import Document
from tests.data.conftest import PNG, one_skipped, picture


def test_captions_or_none(tmp_path: Path) -> None:
    (tmp_path / "deep er").mkdir()
    for number, name in enumerate(["a.png", "deep er/füchse.v2.png", "blank.png"]):
        (tmp_path / name).write_bytes(picture(number).png())
    (tmp_path / "deep er" / "füchse.v2.txt").write_text("\ufefftwo foxes\n", encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "notes.md").write_text("not a picture")
    (tmp_path / ".hidden.png").write_bytes(PNG)

    found = list(read(tmp_path))

    assert [item.id for item in found] == ["a.png", "blank.png", "deep er/füchse.v2.png"]
    assert [item.document for item in found] == [
        Document.of(picture(0)),
        Document.of(picture(2)),  # an empty caption leaves only the picture
        Document.of("two foxes", picture(1)),
    ]
    assert found[2].origin == str(tmp_path / "deep er" / "füchse.v2.png")


def test_ids_do_not_depend_on_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "1.png").write_bytes(PNG)
    monkeypatch.chdir(tmp_path)
    for path in ("a", str(tmp_path / "a"), "./a/../a", "a/*"):
        (item,) = read(path) if path != "a/*" else read("a/*/*.png")
        assert item.id == "b/1.png"
    (item,) = read("a/b/1.png")
    assert item.id == "1.png"


def test_the_content_counts_not_the_extension(tmp_path: Path) -> None:
    (tmp_path / "in truth a png.JPG").write_bytes(PNG)
    (item,) = read(tmp_path)
    assert item.document == Document.of(picture())


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for name in ("a.gif", "b.webp", "c.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    for item in read(tmp_path):
        assert item.document.images[0].pixels[0, 0].tolist() == [255, 0, 0], item.id


@pytest.mark.parametrize("mode", ["CMYK", "P", "RGBA", "L", "1"])
def test_every_mode_keeps_its_colour(tmp_path: Path, mode: str) -> None:
    grey = mode in ("L", "1")
    given = PIL.Image.new("RGB", (16, 16), (255, 255, 255) if grey else (230, 20, 20)).convert(mode)
    given.save(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}")
    (item,) = read(tmp_path)
    colour = item.document.images[0].pixels.mean(axis=(0, 1))
    assert np.abs(colour - (255 if grey else np.array([230, 20, 20]))).max() < 6


@pytest.mark.parametrize("data", [b"no picture", b"", PNG[:-40]])
def test_what_is_no_picture(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.png").write_bytes(data)
    assert len(one_skipped(tmp_path, "b.png", "picture")) == 1


def test_a_picture_that_is_too_large_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png", compress_level=1)
    assert one_skipped(tmp_path, "bomb.png", "pixels") == []
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 1000)
    assert one_skipped(tmp_path, "bomb.png", "at most 1,000 are read") == []


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("two füchse".encode("utf-16")[:-1], "not UTF-8"),
        ("füchse".encode("latin-1"), "not UTF-8"),
        (b"x" * 10_001, "at most 10,000 are read"),
        (b"x" * 100_000, "longer than 10,000 characters"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path: Path, caption: bytes, reason: str) -> None:
    (tmp_path / "b.png").write_bytes(PNG)
    (tmp_path / "b.txt").write_bytes(caption)
    assert one_skipped(tmp_path, "b.png", reason) == []


def test_the_longest_caption_is_read(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(PNG)
    (tmp_path / "b.txt").write_text("狐" * 10_000, encoding="utf-8")
    (item,) = read(tmp_path)
    assert item.document.text == "狐" * 10_000


def test_a_name_that_is_not_utf8_is_told_by_its_bytes(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", "café.png".encode(), "line\nbreak 狐.png".encode()):
        (tmp_path / os.fsdecode(name)).write_bytes(PNG)
    assert {item.id for item in read(tmp_path)} == {"caf\\xe9.png", "café.png", "line\nbreak 狐.png"}


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    (data / "real").mkdir(parents=True)
    other.mkdir()
    for file in (data / "real" / "1.png", other / "2.png"):
        file.write_bytes(PNG)
    (data / "loop").symlink_to(data)
    (data / "real" / "up").symlink_to("..")
    (data / "self.png").symlink_to("self.png")
    (data / "elsewhere").symlink_to(other)
    (data / "zz").symlink_to(data / "real")
    (data / "3.png").symlink_to(other / "2.png")

    found = one_skipped(data, "self.png", "cannot be read")

    assert [item.id for item in found] == ["3.png", "elsewhere/2.png", "real/1.png"]


def test_what_dangles_is_broken(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).symlink_to("nowhere") if name == "a.png" else (tmp_path / name).write_bytes(PNG)
    (tmp_path / "b.txt").symlink_to("nowhere")
    skipped: list[str] = []
    assert list(read(tmp_path, report=lambda one: skipped.append(one.reason))) == []
    assert len(skipped) == 2


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(PNG)
    os.mkfifo(tmp_path / "b.txt")
    reasons: list[str] = []
    assert list(read(tmp_path, report=lambda one: reasons.append(one.reason))) == []
    assert all("is no file" in reason for reason in reasons)
    assert len(reasons) == 2


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_rotated_photograph_stands_upright(tmp_path: Path, orientation: int) -> None:
    upright = PIL.Image.new("RGB", (32, 16), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 16, 16))
    turned = {3: PIL.Image.Transpose.ROTATE_180, 6: PIL.Image.Transpose.ROTATE_90, 8: PIL.Image.Transpose.ROTATE_270}
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(turned[orientation]).save(tmp_path / "a.jpg", exif=exif)
    (item,) = read(tmp_path)
    pixels = item.document.images[0].pixels
    assert pixels.shape == (16, 32, 3)
    assert pixels[8, 4, 0] > 200 > 50 > pixels[8, 28, 0]


def test_damaged_exif_costs_no_picture(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (0, 0, 255)).save(buffer, "JPEG", exif=exif)
    data = bytearray(buffer.getvalue())
    at = data.index(b"Exif\0\0") + 6
    data[at : at + 12] = b"\xff" * 12
    (tmp_path / "a.jpg").write_bytes(data)
    (item,) = read(tmp_path)
    assert item.document.images[0].pixels.shape == (8, 8, 3)
