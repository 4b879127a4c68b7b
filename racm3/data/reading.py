"""`recognise` looks at a path and says what kind of data lies there; `read` gives its items, one by one."""

from __future__ import annotations

import glob
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

from racm3.data.coco_captions import read_coco
from racm3.data.item import Draft, Item, Skipped, broken, checked, name_of
from racm3.data.listed import read_csv, read_jsonl
from racm3.data.parquet import read_parquet
from racm3.data.picture_folder import SUFFIXES as PICTURES
from racm3.data.picture_folder import read_picture
from racm3.data.webdataset import SUFFIXES as SHARDS
from racm3.data.webdataset import read_webdataset
from racm3.errors import InputError, SourceError
from racm3.util.s3 import is_remote, matching

WARNINGS = 5
"""Skipped items that are logged one by one; the rest are only counted (ours: a broken folder must not flood a log)."""
PICTURES_A_PIECE = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of data. ``read(file, root)`` gives the drafts of one file, with ids from its place inside ``root``.

    It raises SourceError if the file as a whole is not what its name says.
    """

    title: str
    read: Callable[[Path, Path], Iterator[Draft]]


LIST = Kind("a list of documents (.jsonl)", read_jsonl)
TABLE = Kind("a list of pictures (.csv)", read_csv)
COCO = Kind("COCO captions (.json)", read_coco)
WEBDATASET = Kind("WebDataset shards (.tar)", read_webdataset)
PARQUET = Kind("Parquet with pictures in it (.parquet)", read_parquet)
FOLDER = Kind("pictures, with .txt captions or none", read_picture)

Kinds = tuple[tuple[tuple[str, ...], Kind], ...]
"""Patterns of names (in lower case) and what they stand for, the first that matches counting."""

ALWAYS: Kinds = (
    (tuple(f"*{suffix}" for suffix in SHARDS), WEBDATASET),
    (("*.parquet",), PARQUET),
    (tuple(f"*{suffix}" for suffix in PICTURES), FOLDER),
    (("*.jsonl",), LIST),
)
NAMED: Kinds = (*ALWAYS, (("*.csv",), TABLE), (("*.json",), COCO))
"""What a file that is given is taken for."""
IN_FOLDERS: Kinds = (
    (("metadata.jsonl", "documents.jsonl"), LIST),
    (("metadata.csv",), TABLE),
    (("captions*.json",), COCO),
    *ALWAYS,
)
"""What a folder is looked through for: of what is nearest to its top, the first of these."""
ALLOWED = f"a file or a folder of {', '.join(kind.title for _, kind in NAMED)}, or a pattern as in data/*.tar"


@dataclass(frozen=True)
class Source:
    """Data that was recognised. ``files`` are what its kind reads; None stands for all pictures below ``root``."""

    path: str
    kind: Kind
    root: Path
    files: tuple[Path, ...] | None

    def read(self, *, strict: bool = False, report: Callable[[Skipped], object] | None = None) -> Iterator[Item]:
        """The items, in a stable order, decoded one by one as they are asked for.

        A broken item is skipped, counted, logged and given to ``report``; so is a second one of the same id. With
        ``strict`` it raises SourceError instead. Raises SourceError if the data are all in one file that is broken as
        a whole.
        """
        read_items = skipped = 0
        seen: set[int] = set()  # hashes: a few dozen bytes an item
        for draft in self._drafts(strict):
            try:
                item = checked(draft.make())
                if hash(item.id) in seen:
                    raise SourceError(f"its id {item.id!r} was there before; ids are unique in a source")
            except (InputError, OSError) as error:
                if strict:
                    raise SourceError(f"{draft.origin} is broken: {error}; mend it, or read without strict") from error
                skipped += 1
                if report is not None:
                    report(Skipped(draft.origin, str(error)))
                if skipped <= WARNINGS:
                    log.warning("skipped %s: %s", draft.origin, error)
            else:
                read_items += 1
                seen.add(hash(item.id))
                yield item
        if skipped:
            log.warning("%s: %d items read, %d broken ones skipped", self.path, read_items, skipped)

    def pieces(self) -> Iterator[Source]:
        """The same data in pieces that can be read apart, with the same ids: a file each, or some pictures."""
        files = self._pictures() if self.files is None else iter(self.files)
        size = PICTURES_A_PIECE if self.kind is FOLDER else 1
        while some := tuple(islice(files, size)):
            yield replace(self, files=some)

    def _drafts(self, strict: bool) -> Iterator[Draft]:
        for file in self._pictures() if self.files is None else self.files:
            try:
                yield from self.kind.read(file, self.root)
            except SourceError as error:
                if strict or (self.files is not None and len(self.files) == 1):
                    raise
                yield Draft(name_of(file), partial(broken, str(error)))
            except OSError as error:
                yield Draft(name_of(file), partial(broken, str(error)))

    def _pictures(self) -> Iterator[Path]:
        return (file for _, file in walk(self.root) if _kind(file, IN_FOLDERS) is FOLDER)


def read(
    path: str | Path, *, strict: bool = False, report: Callable[[Skipped], object] | None = None
) -> Iterator[Item]:
    """The items of a data folder or file: `recognise`, at once, then `Source.read`."""
    return recognise(path).read(strict=strict, report=report)


def recognise(path: str | Path) -> Source:
    """What kind of data lies at ``path``, which may be shards at s3://, named by a pattern or one by one.

    Raises SourceError if it is missing or nothing here reads it.
    """
    if is_remote(path):
        return _shards(path)
    given = Path(path)
    if given.is_dir():
        return _folder(given)
    if given.is_file():
        kind = _kind(given, NAMED)
        if kind is None:
            raise SourceError(f"{given} is not a kind of data that is recognised; allowed: {ALLOWED}")
        return Source(str(path), kind, given.parent, (given,))
    if not glob.has_magic(str(path)):
        raise SourceError(f"there is no {path}; check the path. Allowed: {ALLOWED}")
    files = tuple(sorted(Path(match) for match in glob.glob(str(path), recursive=True)))
    ranks = {_rank(file, NAMED) for file in files}
    kind = _kind(files[0], NAMED) if len(ranks) == 1 else None
    if kind is None:
        found = (
            f"matches several kinds of files, or some that are not read: {files[0]}, ..."
            if files
            else "matches nothing"
        )
        raise SourceError(f"the pattern {path} {found}; allowed: {ALLOWED}")
    root = Path(*takewhile(lambda part: not glob.has_magic(part), given.parts[:-1]))
    return Source(str(path), kind, root, files)


def _shards(pattern: str | Path) -> Source:
    root, files = matching(pattern)
    if other := next((file for file in files if _kind(file, NAMED) is not WEBDATASET), None):
        raise SourceError(
            f"only {WEBDATASET.title} are read from s3://, and {other} is none; copy it to a folder first"
        )
    return Source(str(pattern), WEBDATASET, root, tuple(files))


def _folder(folder: Path) -> Source:
    nearest: tuple[int, int] | None = None  # depth and rank of the kind that is taken
    files: list[Path] = []
    for depth, file in walk(folder):
        if nearest is not None and depth > nearest[0]:
            break
        rank = _rank(file, IN_FOLDERS)
        if rank is None or (nearest is not None and (depth, rank) > nearest):
            continue
        if (depth, rank) != nearest:
            nearest, files = (depth, rank), []
        if IN_FOLDERS[rank][1] is not FOLDER:
            files.append(file)
    if nearest is None:
        raise SourceError(f"the folder {folder} holds no data that is recognised; allowed: {ALLOWED}")
    return Source(str(folder), IN_FOLDERS[nearest[1]][1], folder, tuple(files) or None)


def _rank(file: Path, kinds: Kinds) -> int | None:
    """Which of ``kinds`` the name of a file says that it is."""
    name = file.name.lower()
    return next((i for i, (patterns, _) in enumerate(kinds) if any(fnmatch(name, p) for p in patterns)), None)


def _kind(file: Path, kinds: Kinds) -> Kind | None:
    rank = _rank(file, kinds)
    return None if rank is None else kinds[rank][1]


def walk(folder: Path) -> Iterator[tuple[int, Path]]:
    """(depth, file) for all files below a folder, level by level, by name; without those whose names begin with a dot.

    Links are followed, wherever they lead: data sets are kept as folders of links (Hugging Face's cache is one). A
    folder is walked once, however many links lead to it, so that every loop ends. Raises SourceError if a folder
    cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    waiting = deque([(0, folder)])
    while waiting:
        depth, top = waiting.popleft()
        try:
            facts = top.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(top) as found:
                entries = sorted((entry.name, entry.is_symlink() or entry.is_dir()) for entry in found)
        except OSError as error:
            raise SourceError(
                f"the folder {name_of(top)} cannot be read: {error}; mend that, or move it away"
            ) from None
        for name, perhaps_folder in entries:
            if name.startswith("."):
                continue
            if perhaps_folder and os.path.isdir(top / name):  # which, unlike the entry, knows links without an end
                waiting.append((depth + 1, top / name))
            else:
                yield depth, top / name
