"""Damaged data through every reader: each file is skipped with a reason, refused by SourceError, or read.

A small data set in every layout, one file of it damaged in one of many ways (seeded), is read by a process of its own,
so that a crash of the interpreter and a hang are seen as well. What is counted:

    crashes      anything raised that is not SourceError, a reader that dies, an item that cannot be written again
    hangs        longer than ``--limit-s`` for one file
    unreported   an obvious second reader finds more records in the damaged file than were read and reported together,
                 or strict reading does not stop at what was reported

Ends with one JSON line: files crashes hangs unreported.
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
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

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
        return sum(1 for line in data.split(b"\n") if line.strip())
    if layout == "table":
        count = -1
        try:
            for row in csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline="")):
                count += bool(row)
        except csv.Error:
            pass
        return max(count, 0)
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
    damage = any("damaged after" in one.reason for one in skipped)
    if (expected == -1 and not skipped) or (not damage and count + len(skipped) < expected):
        return "unreported"
    try:
        strictly = sum(1 for _ in read(folder, strict=True))
    except SourceError:
        return "skipped" if skipped else "unreported"
    return "read" if not skipped and strictly == count else "unreported"


def work(pipe: Connection, seed: int, pristine: Path, layouts: dict[str, list[str]], scratch: Path) -> None:
    """Cases as they are asked for, until the other end is closed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    warnings.simplefilter("ignore")
    shutil.copytree(pristine, scratch, dirs_exist_ok=True)
    while (case := pipe.recv()) is not None:
        try:
            pipe.send(run_case(case, seed, pristine, layouts, scratch))
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
        reader.close()
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
            }
        )
    )


if __name__ == "__main__":
    main()
