"""Damaged and odd data through every reader: each file is read, skipped with a reason, or refused by SourceError.

A small data set in every layout, one file of it damaged in one of many ways (seeded), is read by a process of its own,
so that a crash of the interpreter and a hang are seen as well. What is counted:

    crashes      anything raised that is not SourceError, a reader that dies, an item that cannot be written again
    hangs        longer than ``--limit-s`` for one file
    unreported   an obvious second reader finds more records in the damaged file than were read and reported together,
                 or strict reading does not stop at what was reported

Then folders of all sorts, as people have them: pictures under any name, captions beside them or in lists of any kind,
shards, Parquet, junk. Every file, caption and picture that was put in carries a mark of its own:

    passed_over  marks that are in no item, and whose file is not named as skipped or not read

Last, the largest pictures of each format, and strips, are read in a process each: peak_mb is the most memory of one.

Ends with one JSON line: files crashes hangs unreported folders passed_over peak_mb.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import logging
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from racm3.data import Skipped, read
from racm3.errors import SourceError

MEMORY_BYTES = 8 << 30
"""Of address space for a reader: what asks for more fails."""
TEXT = 'zwei Füchse 狐 in the snow, "quoted"'


# The data ----------------------------------------------------------------------------------------------------------


def pictures() -> dict[str, bytes]:
    """A picture in every format and mode, by a name with its extension."""
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    sixteen = PIL.Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 100)
    frames = {"save_all": True, "append_images": [noise.rotate(90)]}
    made: dict[str, bytes] = {}
    for name, picture, options in [
        ("rgb.png", noise, {}),
        ("alpha.png", noise.convert("RGBA"), {}),
        ("sixteen.png", sixteen, {}),
        ("palette.png", noise.convert("P"), {"transparency": 3}),
        ("rotated.jpg", noise, {"exif": exif}),
        ("progressive.jpg", noise, {"progressive": True}),
        ("cmyk.jpg", noise.convert("CMYK"), {}),
        ("lossy.webp", noise, {}),
        ("moving.webp", noise, frames),
        ("moving.gif", noise, frames),
        ("plain.bmp", noise, {}),
        ("packed.tiff", noise, {"compression": "tiff_lzw"}),
    ]:
        buffer = io.BytesIO()
        picture.save(buffer, {"jpg": "jpeg"}.get(kind := name.rpartition(".")[2], kind), **options)
        made[name] = buffer.getvalue()
    return made


def write_layouts(folder: Path) -> dict[str, list[str]]:
    """One small data set a layout below ``folder``; by the layout's name, the files of it that are to be damaged."""
    made = pictures()
    small = {name: data for name, data in made.items() if name in ("rgb.png", "rotated.jpg", "lossy.webp")}

    def put(layout: str, files: dict[str, bytes]) -> list[str]:
        for name, data in files.items():
            (folder / layout / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / layout / name).write_bytes(data)
        return list(files)

    def lines(*records: object) -> bytes:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()

    table = io.StringIO()
    csv.writer(table).writerows([["file_name", "text", "n"], *([name, TEXT, "1"] for name in small)])
    images = [{"id": i, "file_name": name, "width": 24} for i, name in enumerate(small)]
    annotations = [{"id": i, "image_id": i % len(small), "caption": f"{TEXT} {i}"} for i in range(4)]
    shard = io.BytesIO()
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, data in small.items():
            stem = name.partition(".")[0]
            for member, content in ((name, data), (f"{stem}.txt", TEXT.encode()), (f"{stem}.json", b'{"width": 24}')):
                entry = tarfile.TarInfo(member if stem != "rgb" else "long/" * 30 + member)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    packed = shard.getvalue()[: -(-len(shard.getvalue().rstrip(b"\0")) // 512) * 512 + 1024]
    rows = {"image": [*small.values()] * 8, "text": [TEXT] * 24, "n": [1.5] * 24, "tags": [["a", None]] * 24}
    structs = pa.table({**rows, "image": [{"bytes": data, "path": name} for name, data in small.items()] * 8})
    buffer, second = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table(rows), buffer, row_group_size=12, write_page_checksum=True)
    pq.write_table(structs, second, compression="gzip", data_page_size=500)
    parts = [TEXT, {"image": "rgb.png"}, TEXT]
    for layout in ("listed", "table", "interleaved", "coco"):
        put(layout, small)
    return {
        "pictures": put("pictures", {**made, **{name.partition(".")[0] + ".txt": TEXT.encode() for name in made}}),
        "listed": put("listed", {"metadata.jsonl": lines(*({"file_name": n, "text": TEXT, "n": 1} for n in small))}),
        "table": put("table", {"metadata.csv": table.getvalue().encode()}),
        "texts": put("texts", {"texts.jsonl": lines(*({"text": f"{TEXT} {i}", "id": i} for i in range(4)))}),
        "interleaved": put("interleaved", {"documents.jsonl": lines({"parts": parts}, {"parts": parts, "by": [1]})}),
        "coco": put("coco", {"captions.json": json.dumps({"images": images, "annotations": annotations}).encode()}),
        "shards": put("shards", {"0.tar": packed}),
        "zipped": put("zipped", {"0.tar.gz": gzip.compress(packed)}),
        "parquet": put("parquet", {"0.parquet": buffer.getvalue()}),
        "structs": put("structs", {"0.parquet": second.getvalue()}),
    }


# The damage --------------------------------------------------------------------------------------------------------


def flip(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))


def truncate(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    del data[rng.integers(len(data)) :]


def splice(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    start, length = rng.integers(len(other)), rng.integers(1, 500)
    at = rng.integers(len(data))
    data[at : at + int(rng.integers(2)) * length] = other[start : start + length]


def duplicate(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    start, length = rng.integers(len(data)), int(rng.integers(1, 500))
    at = rng.integers(len(data))
    data[at:at] = data[start : start + length] * int(rng.integers(1, 4))


def remove(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    at = rng.integers(len(data))
    del data[at : at + rng.integers(1, 500)]


def huge_number(data: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Of a binary field, near the front as headers are; or of a number in digits."""
    digits = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if digits and rng.integers(2):
        data[(at := digits[rng.integers(len(digits))]) : at + 1] = b"9" * int(rng.choice([2, 11, 30, 5000]))
        return
    value = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\0"][rng.integers(5)]
    at = rng.integers(len(data) if rng.integers(2) else min(64, len(data)))
    data[at : at + 4] = value * int(rng.integers(1, 3))


DAMAGES = (flip, truncate, splice, duplicate, remove, huge_number)


def mend_checksum(data: bytearray) -> None:
    """Right checksums in the headers of a tar, so that the damage inside is looked at."""
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])


def damaged(content: bytes, other: bytes, name: str, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    for _ in range(rng.integers(1, 3)):
        if data:
            DAMAGES[rng.integers(len(DAMAGES))](data, other, rng)
    if name.endswith(".tar") and rng.integers(2):
        mend_checksum(data)
    return bytes(data)


# The second reader -------------------------------------------------------------------------------------------------


def records(layout: str, file: Path, folder: Path) -> int:
    """How many records there are at least, told in the most obvious way; -1 if something must be reported."""
    if layout == "pictures":
        return len(pictures())
    data = file.read_bytes()
    if file.suffix == ".jsonl":
        return len({named_by(line.strip()) for line in data.split(b"\n")} - {b""})
    if layout == "table":
        rows: list[list[str]] = []
        try:
            rows.extend(csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline="")))
        except csv.Error:
            pass
        header, *rest = [row for row in rows if row] or [[]]
        return len({row[0] if len(row) == len(header) else tuple(row) for row in rest})
    if layout == "coco":
        try:
            return len(json.loads(data)["images"])
        except (ValueError, LookupError, TypeError):
            return -1
    if layout in ("shards", "zipped"):
        return samples(data)
    try:
        return int(pq.read_metadata(file).num_rows)
    except (pa.ArrowException, OSError):
        return -1


def named_by(line: bytes) -> object:
    """What a line of JSON is one record of, together with others: its picture, or else itself."""
    try:
        name = json.loads(line)["file_name"]
        return name if name and isinstance(name, str) else line
    except (ValueError, LookupError, TypeError):
        return line


def samples(data: bytes) -> int:
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return -1
    keys: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, slash, name = member.name.rpartition("/")
                    keys.append(folder + slash + name.partition(".")[0])
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError):
        return -1
    whole = data[end : end + 512] == b"\0" * 512
    return sum(a != b for a, b in zip(keys, [None, *keys], strict=False)) if whole else -1


# One case ----------------------------------------------------------------------------------------------------------


def run_case(case: int, seed: int, pristine: Path, layouts: dict[str, list[str]], scratch: Path) -> str:
    """'read', 'skipped' or 'refused'; 'unreported'. Whatever else is raised is a crash."""
    rng = np.random.default_rng((seed, case))
    layout = list(layouts)[case % len(layouts)]
    name = layouts[layout][rng.integers(len(layouts[layout]))]
    victim = scratch / layout / name
    content = (pristine / layout / name).read_bytes()
    others = [file for file in sorted(pristine.rglob("*")) if file.is_file()]
    victim.write_bytes(damaged(content, others[rng.integers(len(others))].read_bytes(), name, rng))
    try:
        return judged(layout, victim, scratch / layout)
    finally:
        victim.write_bytes(content)


def judged(layout: str, victim: Path, folder: Path) -> str:
    skipped: list[Skipped] = []
    count = 0
    try:
        for item in read(folder, report=skipped.append):
            json.dumps([item.id, item.document.text, item.metadata, item.origin], ensure_ascii=False).encode()
            count += 1
    except SourceError as error:
        return "refused" if str(error) else "unreported"
    expected = records(layout, victim, folder)
    skipped = [one for one in skipped if not one.unread]
    damage = any("damaged after" in one.reason for one in skipped)
    if (expected == -1 and not skipped) or (not damage and count + len(skipped) < expected):
        return "unreported"
    try:
        strictly = sum(1 for _ in read(folder, strict=True))
    except SourceError:
        return "skipped" if skipped else "unreported"
    return "read" if not skipped and strictly == count else "unreported"


# Folders of all sorts -----------------------------------------------------------------------------------------------


@dataclass
class Marked:
    """A folder, and every mark that was put in: a word or a colour, with the files one of which is to be named if it
    is not found in an item."""

    folder: Path
    words: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    colours: dict[tuple[int, int, int], tuple[Path, ...]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.files.append(path)
        return path

    def word(self, *named: Path) -> str:
        word = f"mark-{len(self.words):04}"
        self.words[word] = named
        return f"{word} a toy"

    def png(self, *named: Path) -> bytes:
        """A picture of a colour of its own."""
        n = len(self.colours)
        colour = (n % 256, n // 256 % 256, 77)
        self.colours[colour] = named
        out = io.BytesIO()
        PIL.Image.new("RGB", (8, 8), colour).save(out, "PNG")
        return out.getvalue()

    def passed_over(self) -> list[str]:
        skipped: list[Skipped] = []
        items = list(read(self.folder, report=skipped.append))
        named = {origin for one in skipped for origin in _prefixes(one.origin)}
        if any(not one.unread and "there is no file" in one.reason for one in skipped):
            named.add(str(self.folder))  # the row of a damaged list is named by the file that it names
        origins = {origin for item in items for origin in _prefixes(item.origin)}
        said = json.dumps([[item.document.text, item.metadata] for item in items])
        seen = {tuple(image.pixels[0, 0].tolist()) for item in items for image in item.document.images}
        missing = [
            *(w for w, files in self.words.items() if w not in said and named.isdisjoint(map(str, files))),
            *(str(c) for c, files in self.colours.items() if c not in seen and named.isdisjoint(map(str, files))),
        ]
        told = {str(file) for word, files in self.words.items() for file in files if word not in missing}
        return missing + [str(file) for file in self.files if str(file) not in named | origins | told]


def _prefixes(origin: str) -> list[str]:
    return [origin, *(origin[:i] for i, character in enumerate(origin) if character in "#:")]


def pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[rng.integers(len(choices))]


FORMATS = ("PNG", "JPEG", "WEBP", "TGA", "AVIF", "JPEG2000", "ICO", "PPM", "DDS", "BMP", "TIFF", "GIF", "PCX", "SGI")
ENDINGS = (".png", ".PNG", ".jpg", ".jfif", ".jpe", ".avif", ".heic", ".tga", ".psd", ".dat", "", ".v2.webp", ".txt")
JUNK = (
    b"",
    b"junk",
    b"\xff\x0a" + bytes(40),
    b"\0\0\0\x18ftypheic" + bytes(40),
    b"%!PS-Adobe",
    b"8BPS junk",
    bytes(99),
)
BESIDE = ("{stem}.txt", "{stem}.TXT", "{stem}.caption", "{name}.txt", "{stem}.json", "{name}.json")


def put_pictures(marked: Marked, rng: np.random.Generator, below: str) -> None:
    for i in range(rng.integers(1, 5)):
        name = f"{below}{pick(rng, 'p', 'Fox ', 'füchse.')}{i}{pick(rng, *ENDINGS)}"
        out = io.BytesIO()
        form = pick(rng, *FORMATS)
        PIL.Image.new("RGB", (16, 16), (9, 9, 9)).save(out, form)
        if form == "TGA":  # which nothing but its name tells
            name += ".tga"
        data = out.getvalue() if rng.integers(4) else out.getvalue()[: rng.integers(1, len(out.getvalue()))]
        path = marked.write(name, pick(rng, data, data, data, *JUNK[:1]))
        if rng.integers(2):
            beside = path.parent / pick(rng, *BESIDE).format(stem=path.with_suffix("").name, name=path.name)
            if not beside.exists():
                text = marked.word(beside, path)
                text = json.dumps({pick(rng, "caption", "text", "prompt"): text}) if beside.suffix == ".json" else text
                marked.write(str(beside.relative_to(marked.folder)), text.encode(pick(rng, "utf-8", "utf-16")))


def put_list(marked: Marked, rng: np.random.Generator, below: str) -> None:
    names = (
        *("metadata.jsonl", "metadata.csv", "train.csv", "train.tsv", "captions.txt", "train.jsonl"),
        "captions.json",
    )
    path = marked.folder / f"{below}{pick(rng, *names)}"
    if path.exists():
        return
    fields = pick(rng, "file_name", "image", "filepath"), pick(rng, "text", "caption", "title")
    rows = []
    for i in range(rng.integers(1, 4)):
        inner = f"{pick(rng, '', 'sub/')}{path.name}-{i}.png"
        picture = path.parent / inner
        data = marked.png(picture, path)
        marked.write(str(picture.relative_to(marked.folder)), data if rng.integers(5) else data[:40])
        given = pick(rng, inner, inner, inner.replace("/", "\\"), str(picture))
        rows += [(given, marked.word(path, picture, marked.folder)) for _ in range(rng.integers(1, 4))]
    rng.shuffle(rows)
    records = [dict(zip(fields, row, strict=True)) for row in rows]
    out = io.StringIO()
    if path.suffix == ".jsonl":
        out.write("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        out.write(json.dumps(records))
    else:
        csv.writer(out, delimiter=pick(rng, ",", "\t", ";", "|")).writerows([fields, *rows])
    text = out.getvalue()
    if rng.integers(3) == 0:  # damage, but of no mark
        at = pick(rng, *(i for i, character in enumerate(text) if character in ',;|:"{}[]\t\r\n_./'))
        text = text[:at] + text[at + 1 :]
    marked.write(str(path.relative_to(marked.folder)), text.encode(pick(rng, "utf-8", "utf-8", "utf-8-sig", "utf-16")))


def put_shard(marked: Marked, rng: np.random.Generator, below: str) -> None:
    path = marked.folder / f"{below}{pick(rng, '0.tar', 'backup.TAR')}"
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(rng.integers(1, 4)):
            members: dict[str, bytes] = {"x.mp4": b"film"} if rng.integers(2) else {}
            for ending in pick(
                rng, ("png",), ("left.png", "right.png"), ("jfif",), ("image",), (), ("png", "mask.png")
            ):
                members[ending] = marked.png(path)
            for ending in pick(rng, ("txt",), ("caption",), ("txt", "caption"), ("json",), ()):
                text = marked.word(path)
                members[ending] = (json.dumps({"text": text}) if ending == "json" else text).encode()
            for ending, data in members.items():
                entry = tarfile.TarInfo(f"{i}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    marked.write(str(path.relative_to(marked.folder)), out.getvalue())


def put_parquet(marked: Marked, rng: np.random.Generator, below: str) -> None:
    path = marked.folder / f"{below}0.parquet"
    columns: dict[str, list[Any]] = {pick(rng, "caption", "title", "words"): [marked.word(path) for _ in range(2)]}
    if rng.integers(3):
        columns[pick(rng, "image", "picture")] = [marked.png(path) for _ in range(2)]
    if rng.integers(2):
        columns["mask"] = [marked.png(path) for _ in range(2)]
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    marked.write(str(path.relative_to(marked.folder)), out.getvalue())


def put_junk(marked: Marked, rng: np.random.Generator, below: str) -> None:
    marked.write(
        f"{below}{pick(rng, 'README.md', 'log.csv', 'a.skipped.jsonl', 'x.zip', 'notes.txt', 'b.jsonl')}", b"a,b\n"
    )
    marked.write(f"{below}junk{pick(rng, *ENDINGS)}", pick(rng, *JUNK))


def folder_of_all_sorts(folder: Path, rng: np.random.Generator) -> Marked:
    marked = Marked(folder)
    for make in (put_pictures, put_list, put_shard, put_parquet, put_junk):
        if rng.integers(2):
            make(marked, rng, pick(rng, "", "", "sub/", "a/b/"))
    return marked


def run_folder(number: int, seed: int) -> str:
    """'', or what was passed over. Whatever else than SourceError is raised is a crash."""
    with tempfile.TemporaryDirectory() as place:
        marked = folder_of_all_sorts(Path(place), np.random.default_rng((seed, number, 1)))
        try:
            return "\n".join(marked.passed_over())
        except SourceError as error:
            return "" if str(error) else "refused without a word"


# The largest pictures ------------------------------------------------------------------------------------------------


def largest() -> Iterator[tuple[str, PIL.Image.Image, dict[str, Any]]]:
    """Pictures of as many pixels as are read, in the formats and modes whose decoders take most."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    rgb = PIL.Image.new("RGB", (8000, 8000), (10, 200, 30))
    yield "rotated.jpg", rgb, {"exif": exif}
    yield "alpha.png", rgb.convert("RGBA"), {"exif": exif, "compress_level": 1}
    yield "float.tif", PIL.Image.new("F", (8000, 8000), 0.5), {"compression": "tiff_lzw"}
    yield "sixteen.png", PIL.Image.new("I;16", (8000, 8000), 300), {"compress_level": 1}
    yield "runs.tga", rgb.convert("RGBA"), {"compression": "tga_rle"}
    yield "palette.gif", rgb.convert("P"), {}
    yield "halved.jp2", rgb, {}
    yield "larger.jpg", rgb.resize((9000, 9000)), {}
    yield "alpha.webp", rgb.convert("RGBA").resize((7480, 7480)), {"method": 0}
    yield "alpha.avif", rgb.convert("RGBA").resize((7070, 7070)), {"speed": 10, "subsampling": "4:4:4"}
    yield "strip.png", PIL.Image.new("L", (30_000, 1)), {}
    yield "strips.png", PIL.Image.new("L", (200_000, 2)), {}


def peak_mb() -> tuple[int, str]:
    """The most memory that a process takes to read one of the largest pictures, and which it is."""
    peaks = []
    with tempfile.TemporaryDirectory() as place:
        for name, picture, options in largest():
            picture.save(Path(place) / name, **options)
            script = (  # VmHWM: ru_maxrss would be that of this process, which made the picture
                "import sys; from racm3.data import read; (item,) = read(sys.argv[1]);"
                "status = open('/proc/self/status').read();"
                "print(int(status.partition('VmHWM:')[2].split()[0]) * 1024 // 1_000_000)"
            )
            command = [sys.executable, "-W", "ignore", "-c", script, str(Path(place) / name)]
            peaks.append((int(subprocess.run(command, capture_output=True, text=True, check=True).stdout), name))
            print(f"{name:12}  {peaks[-1][0]} MB", flush=True)
            (Path(place) / name).unlink()
    return max(peaks)


def work(pipe: Connection, seed: int, pristine: Path, layouts: dict[str, list[str]], scratch: Path) -> None:
    """Cases as they are asked for, until the other end is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    warnings.simplefilter("ignore")
    shutil.copytree(pristine, scratch, dirs_exist_ok=True)
    while (case := pipe.recv()) is not None:
        try:
            pipe.send(run_folder(-1 - case, seed) if case < 0 else run_case(case, seed, pristine, layouts, scratch))
        except BaseException:
            pipe.send("crash\n" + traceback.format_exc())
            return


class Reader:
    """The process that reads, and its replacement when it has crashed or hung."""

    def __init__(self, start: Callable[[Connection], multiprocessing.Process]) -> None:
        self.start = start
        self.process: multiprocessing.Process | None = None

    def run(self, case: int, limit_s: float) -> str:
        if self.process is None:
            self.pipe, theirs = multiprocessing.Pipe()
            self.process = self.start(theirs)
            theirs.close()
        self.pipe.send(case)
        try:
            answer = self.pipe.recv() if self.pipe.poll(limit_s) else "hang"
        except EOFError:
            self.process.join()
            answer = f"crash\nthe process died: {self.process.exitcode}"
        if answer.startswith(("crash", "hang")):
            self.close()
        return answer

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folders", type=int, default=2_000)
    parser.add_argument("--peak", action=argparse.BooleanOptionalAction, default=True, help="read the largest pictures")
    parser.add_argument("--limit-s", type=float, default=10.0, help="for one file")
    chosen = parser.parse_args()
    context = multiprocessing.get_context("fork")
    found: Counter[tuple[str, str]] = Counter()
    slowest_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        pristine, scratch = Path(folder) / "pristine", Path(folder) / "scratch"
        layouts = {name: files for name, files in write_layouts(pristine).items() if files}

        def start(pipe: Connection) -> multiprocessing.Process:
            process = context.Process(target=work, args=(pipe, chosen.seed, pristine, layouts, scratch), daemon=True)
            process.start()
            return process  # type: ignore[return-value]

        reader = Reader(start)
        for case in range(chosen.files):
            started = time.perf_counter()
            kind, _, details = reader.run(case, chosen.limit_s).partition("\n")
            slowest_s = max(slowest_s, time.perf_counter() - started)
            layout = list(layouts)[case % len(layouts)]
            found[layout, kind] += 1
            if kind in ("crash", "hang", "unreported"):
                print(f"case {case} of seed {chosen.seed}, {layout}: {kind}\n{details}")
        passed_over = 0
        for number in range(chosen.folders):
            answer = reader.run(-1 - number, chosen.limit_s)
            kind, _, details = answer.partition("\n")
            if kind in ("crash", "hang"):
                found["folders", kind] += 1
                print(f"folder {number} of seed {chosen.seed}: {kind}\n{details}")
            elif answer:
                passed_over += len(answer.splitlines())
                print(f"folder {number} of seed {chosen.seed}: passed over\n{answer}")
        reader.close()
    peak, largest_file = peak_mb() if chosen.peak else (None, "")
    for layout in layouts:
        counts = "  ".join(f"{kind} {count}" for (of, kind), count in sorted(found.items()) if of == layout)
        print(f"{layout:12}  {counts}")
    print(f"the slowest took {slowest_s:.2f} s")
    total = Counter(kind for (_, kind), count in found.items() for _ in range(count))
    print(
        json.dumps(
            {
                "files": chosen.files,
                "crashes": total["crash"],
                "hangs": total["hang"],
                "unreported": total["unreported"],
                "skipped": total["skipped"],
                "refused": total["refused"],
                "read": total["read"],
                "slowest_s": round(slowest_s, 2),
                "folders": chosen.folders,
                "passed_over": passed_over,
                "peak_mb": peak,
                "peak_of": largest_file,
            }
        )
    )


if __name__ == "__main__":
    main()
