from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from racm3.data import Item, read, webdataset, write_webdataset
from racm3.document import Document
from tests.data.conftest import PNG, items, one_skipped, picture, read_all, same, tar

FINE = {f"{i}.{ext}": data for i in range(3) for ext, data in (("png", picture(i).png()), ("txt", b"fine"))}


def test_round_trip_as_shard_folder_and_pattern(tmp_path: Path) -> None:
    text_only = Item("words", Document.of("only words"), {}, "")
    shards = write_webdataset([*items(5), text_only], tmp_path / "50%", items_per_shard=2)
    assert [shard.name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]
    assert len(list(read(shards[0]))) == 2
    same([*items(5), text_only], list(read(tmp_path / "50%")))
    same([*items(5), text_only], list(read(str(tmp_path / "50%" / "*.tar"))))


def test_as_img2dataset_writes_them_plain_and_gzipped(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().pil.save(buffer, format="JPEG")
    shard = tar(tmp_path / "00000.tar", {"01.jpg": buffer.getvalue(), "01.json": b'{"caption": "a fox", "nsfw": NaN}'})
    (tmp_path / "00001.TAR.GZ").write_bytes(gzip.compress(shard.read_bytes()))
    (tmp_path / "00002.tar").write_bytes(gzip.compress(shard.read_bytes()))  # of the wrong name
    (tmp_path / "00000.parquet").write_text("what img2dataset leaves beside")
    (tmp_path / "00000_stats.json").write_text("{}")

    found = list(read(tmp_path))

    assert [item.id for item in found] == ["00000/01", "00001/01", "00002/01"]
    assert found[0].origin == f"{shard}#01"
    for item in found:
        assert (item.document.text, item.metadata) == ("a fox", {"caption": "a fox", "nsfw": None})
        assert item.document.images[0].pixels.shape == (6, 5, 3)


def test_ids_of_shards_in_folders(tmp_path: Path) -> None:
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        tar(tmp_path / part / "0.tar", {"x/1.txt": b"x"})
    for source in (tmp_path, str(tmp_path / "*" / "*.tar"), str(tmp_path / "**" / "*.tar")):
        assert [item.id for item in read(source)] == ["a/0/x/1", "b/0/x/1"]


def test_long_names_folders_and_what_is_not_read(tmp_path: Path) -> None:
    long = "狐/" * 100 + "1"
    files = {"./a.JPG": PNG, "./a.txt": b"x", "a.seg.png": b"a mask", "a.mp4": b"film", f"{long}.txt": b"far down"}
    shard = tar(tmp_path / "x.tar", files)
    with tarfile.open(shard, "a") as out:
        for kind, name in ((tarfile.DIRTYPE, "folder.txt"), (tarfile.SYMTYPE, "b.txt"), (tarfile.FIFOTYPE, "c.txt")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            out.addfile(entry)
    assert [(item.id, item.document) for item in read(shard)] == [
        ("x/a", Document.of("x", picture())),
        (f"x/{long}", Document.of("far down")),
    ]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("b.txt", b"x"), ("b.json", b"[1]")], "no object but a list"),
        ([("b.txt", b"  ")], "neither a picture nor a text (its members: txt)"),
        ([("b.v2", b"what is this")], "neither a picture nor a text (its members: v2)"),
        ([("b.png", PNG), ("b.jpg", PNG[:-40])], "cannot be read as a picture"),
        ([("b.png", PNG[:-40]), ("b.txt", b"x")], "cannot be read as a picture"),
        ([("b.txt", b"caf\xe9")], "not UTF-8"),
        ([("b.txt", b"x" * 50_000)], "longer than"),
        ([("b.json", b'{"caption": "' + b"x" * 1_100_000 + b'"}')], "JSON is longer"),
        ([("b.txt", b"x"), ("b.json", b'{"more": "\\ud83e"}')], "half a character"),
        ([("../b.txt", b"x")], "leaves the shard"),
        ([("/b.txt", b"x")], "leaves the shard"),
        ([("a/../../b.txt", b"x")], "leaves the shard"),
        ([("2.png", PNG)], "was there before"),
    ],
)
def test_a_broken_sample(tmp_path: Path, files: list[tuple[str, bytes]], reason: str) -> None:
    shard = tar(tmp_path / "x.tar", [*FINE.items(), *files, ("z.txt", b"fine")])
    assert len(one_skipped(shard, "2" if files[0][0] == "2.png" else "b", reason)) == 4


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_FILE_BYTES", 1000)
    shard = tar(tmp_path / "x.tar", {**FINE, "b.png": b"x" * 1001, "z.txt": b"fine"})
    assert len(one_skipped(shard, "#b", "its .png takes 1,001 bytes; at most 1,000 are read")) == 4


@pytest.mark.parametrize("zipped", [False, True])
def test_a_shard_that_is_cut_off_keeps_what_came_before(tmp_path: Path, zipped: bool) -> None:
    """Cut anywhere: what is read is the beginning of what was there, and that it is not all is said."""
    files = {name: picture(int(name[0]), 60, 60).png() if name.endswith("png") else b"fine" for name in FINE}
    whole = tar(tmp_path / "x.tar", files).read_bytes().rstrip(b"\0") + b"\0" * 512
    whole = gzip.compress(whole) if zipped else whole
    shard = tmp_path / "x.tar"
    counts = []
    for kept in range(0, len(whole), 500):
        shard.write_bytes(whole[:kept])
        found, (skipped,) = read_all(shard)
        assert skipped.origin == str(shard)
        assert f"damaged after {len(found)} samples" in skipped.reason
        assert [item.id for item in found] == [f"x/{i}" for i in range(len(found))]
        assert all(item.document == Document.of("fine", picture(i, 60, 60)) for i, item in enumerate(found))
        counts.append(len(found))
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]


def header(shard: Path, at: int, data: bytes) -> None:
    """Put ``data`` into the header of the fifth member, and make its checksum right again."""
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as opened:
        start = opened.getmembers()[4].offset
    content[start + at : start + at + len(data)] = data
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (124, b"\x80" + b"\0" * 2 + b"\x7f" + b"\xff" * 8),  # a size of 2 ** 71 - 1
        (124, b"\xff" * 12),  # a size of -1
        (124, b"77777777777\0"),  # a size of 8 GB
        (124, b"notanumber!\0"),
        (156, b"x" + b"\0" * 100),  # an extended header, in the place of the picture of 100 kB
    ],
)
def test_a_header_that_lies(tmp_path: Path, at: int, data: bytes) -> None:
    shard = tar(tmp_path / "x.tar", {**FINE, "2.png": picture(2, 200, 200).png()})
    header(shard, at, data)
    found, skipped = read_all(shard)
    assert len(found) <= 2
    assert len(skipped) == 1
    assert "damaged after" in skipped[0].reason


def test_a_header_that_is_damaged_is_not_the_end(tmp_path: Path) -> None:
    shard = tar(tmp_path / "x.tar", FINE)
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as opened:
        data[opened.getmembers()[2].offset] ^= 1
    shard.write_bytes(data)
    assert len(one_skipped(shard, "x.tar", "damaged after 0 samples, which are kept: ReadError: bad checksum")) == 0


def test_a_damaged_gzip_is_reported(tmp_path: Path) -> None:
    zipped = bytearray(gzip.compress(tar(tmp_path / "x.tar", FINE).read_bytes()))
    zipped[-6] ^= 1  # of the checksum
    (tmp_path / "x.tar").write_bytes(zipped)
    assert len(one_skipped(tmp_path / "x.tar", "x.tar", "CRC")) == 3


def test_one_damaged_shard_of_several(tmp_path: Path) -> None:
    for name in "abc":
        tar(tmp_path / f"{name}.tar", FINE)
    (tmp_path / "b.tar").write_bytes(b"")
    assert len(one_skipped(tmp_path, "b.tar", "damaged after 0 samples")) == 6
