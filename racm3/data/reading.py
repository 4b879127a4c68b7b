"""`recognise` looks at a path and says what kinds of data lie there; `read` gives their items, one by one.

Every file of a folder is read, or said not to be: by the list that names it, by the reader of its own kind, as a
picture, as what tells about the picture beside it, or, at last, by name as `Skipped`.
"""

from __future__ import annotations

import glob
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from itertools import groupby, islice, takewhile
from pathlib import Path

from racm3.data.captions import JSON_SUFFIX, PICTURE_SUFFIXES, TEXT_SUFFIXES, beside
from racm3.data.coco_captions import read_coco
from racm3.data.item import Draft, Item, Skipped, broken, checked, name_of
from racm3.data.listed import holds_documents, names_pictures, read_csv, read_jsonl
from racm3.data.parquet import read_parquet
from racm3.data.picture_folder import read_picture
from racm3.data.skip_report import Counts
from racm3.data.webdataset import SUFFIXES as SHARDS
from racm3.data.webdataset import read_webdataset
from racm3.document import is_marked
from racm3.errors import FormatError, InputError, SourceError
from racm3.util.one_line import one_line
from racm3.util.s3 import is_remote, matching

READER = 2
"""Raised when the same files give other documents than before: what was prepared of them is made again then."""
WARNINGS = 5
"""Skipped items that are logged one by one; the rest are only counted (ours: a broken folder must not flood a log)."""
PICTURES_A_PIECE = 1000
AT = "at "
"""Before a place, among what a memory remembers of what it is made of."""
MEMORY = "_versions"
"""The folder that makes another one a memory."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of data. ``read(file, root)`` gives the drafts of one file, with ids from its place inside ``root``.

    It raises SourceError if the file as a whole is not what its name says. ``lists``: whether it names other files.
    """

    title: str
    read: Callable[[Path, Path], Iterator[Draft | Skipped]]
    lists: bool = False


LIST = Kind("a list of documents (.jsonl)", read_jsonl, lists=True)
TABLE = Kind("a list of pictures (.csv)", read_csv, lists=True)
COCO = Kind("COCO captions (.json)", read_coco, lists=True)
WEBDATASET = Kind("WebDataset shards (.tar)", read_webdataset)
PARQUET = Kind("Parquet with pictures in it (.parquet)", read_parquet)
FOLDER = Kind("pictures, with .txt captions or none", read_picture)

Kinds = tuple[tuple[tuple[str, ...], Kind], ...]
"""Patterns of names (in lower case) and what they stand for, the first that matches counting."""

ALWAYS: Kinds = (
    (tuple(f"*{suffix}" for suffix in SHARDS), WEBDATASET),
    (("*.parquet",), PARQUET),
    (tuple(f"*{suffix}" for suffix in PICTURE_SUFFIXES), FOLDER),
    (("*.jsonl",), LIST),
)
NAMED: Kinds = (*ALWAYS, (("*.csv", "*.tsv", "captions*.txt"), TABLE), (("*.json",), COCO))
"""What a file that is given is taken for."""
GOVERNING: Kinds = (
    (("metadata.jsonl", "documents.jsonl"), LIST),
    (("metadata.csv", "metadata.tsv"), TABLE),
    (("captions*.json",), COCO),
)
"""Lists that are complete: pictures in their folder that they do not name are not read."""
OTHER: Kinds = ((("*.csv", "*.tsv", "captions*.txt"), TABLE), (("*.jsonl",), LIST))
"""What may be a list, as its beginning tells."""
ORDER = (LIST, TABLE, COCO, WEBDATASET, PARQUET)
ALLOWED = f"a file or a folder of {', '.join(kind.title for _, kind in NAMED)}, or a pattern as in data/*.tar"


@dataclass(frozen=True)
class Source:
    """Data that was recognised: the files of each kind. In a ``folder``, pictures below ``root`` as well."""

    path: str
    root: Path
    data: tuple[tuple[Kind, tuple[Path, ...]], ...]
    folder: bool = False
    pictures: bool = False
    """Whether there are pictures that are read for themselves."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*(kind for kind, _ in self.data), *([FOLDER] if self.pictures else []))

    @property
    def title(self) -> str:
        """What lies there, in words."""
        return " + ".join(kind.title for kind in self.kinds)

    @property
    def place(self) -> str:
        """Where it lies, as a memory that is made of it remembers."""
        return AT + (self.path if is_remote(self.path) else name_of(Path(os.path.realpath(self.path))))

    @property
    def told(self) -> tuple[str, ...]:
        """What lies there and where."""
        return (*(kind.title for kind in self.kinds), self.place)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are no pictures, or that were named one by one."""
        return tuple(file for _, files in self.data for file in files)

    def read(self, *, strict: bool = False, report: Callable[[Skipped], object] | None = None) -> Iterator[Item]:
        """The items, in a stable order, decoded one by one as they are asked for.

        A broken item is skipped, counted, logged and given to ``report``; so is a second one of the same id. With
        ``strict`` it raises SourceError instead. In the end ``report`` gets the files that are not read. Raises
        SourceError if the data are all in one file that is broken as a whole.
        """
        counts = Counts()
        seen: set[int] = set()  # hashes: a few dozen bytes an item

        def note(skipped: Skipped) -> None:
            counts.skip(skipped)
            if report is not None:
                report(skipped)
            if not skipped.unread and counts.broken <= WARNINGS:
                log.warning("%s", one_line(f"skipped {skipped.origin}: {skipped.reason}"))

        for draft in self._drafts(strict):
            if isinstance(draft, Skipped):
                note(draft)
                continue
            try:
                item = checked(draft.make())
                if hash(item.id) in seen:
                    raise SourceError(f"its id {item.id!r} was there before; ids are unique in a source")
                if strict and item.problems:
                    raise SourceError(item.problems[0])
            except (InputError, OSError) as error:
                if strict:
                    raise SourceError(f"{draft.origin} is broken: {error}; mend it, or read without strict") from error
                unread = _label(draft.origin) if isinstance(error, FormatError) else ""
                note(Skipped(draft.origin, str(error), draft.item_id, draft.scope, unread))
            else:
                counts.see(item)
                seen.add(hash(item.id))
                for problem in item.problems:
                    note(Skipped(item.origin, problem, item.id))
                yield item
        if report is None and (counts.broken or counts.unread):
            log.warning("%s: %s", self.path, counts)

    def pieces(self) -> Iterator[Source]:
        """The same data in pieces that can be read apart, with the same ids: a file each, or some pictures."""
        for kind, files in self.data:
            size = PICTURES_A_PIECE if kind is FOLDER else 1
            for start in range(0, len(files), size):
                yield replace(self, data=((kind, files[start : start + size]),), folder=False, pictures=False)
        pictures = (file for file in self._rest(self._claimed()) if isinstance(file, Path)) if self.folder else iter(())
        while some := tuple(islice(pictures, PICTURES_A_PIECE)):
            yield replace(self, data=((FOLDER, some),), folder=False, pictures=False)

    def unread(self) -> Iterator[Skipped]:
        """The files of a folder that `pieces` do not hold, nor what they hold names."""
        return (file for file in self._rest(self._claimed()) if isinstance(file, Skipped)) if self.folder else iter(())

    def touched(self) -> Iterator[Path]:
        """All files that reading looks at, which have to stay as they are for it to give the same."""
        if self.folder:
            yield from (file for _, file in walk(self.root))
            return
        named = (Path(name) for draft in self._drafts(False) if isinstance(draft, Draft) for name in draft.files)
        lists = any(kind.lists or kind is FOLDER for kind in self.kinds)
        yield from dict.fromkeys((*self.files, *(named if lists else ())))

    def _claimed(self) -> set[int]:
        """The hashes of the files that lists name."""
        lists = replace(self, data=tuple((kind, files) for kind, files in self.data if kind.lists), folder=False)
        return {hash(file) for draft in lists._drafts(False) if isinstance(draft, Draft) for file in draft.files}

    def _drafts(self, strict: bool) -> Iterator[Draft | Skipped]:
        claimed: set[int] = set()
        for kind, files in self.data:
            for file in files:
                for draft in self._of_file(kind, file, strict):
                    if self.folder and isinstance(draft, Draft):
                        claimed.update(map(hash, draft.files))
                    yield draft
        if self.folder:
            for left in self._rest(claimed):
                if isinstance(left, Skipped):
                    yield left
                else:
                    yield from self._of_file(FOLDER, left, strict)

    def _of_file(self, kind: Kind, file: Path, strict: bool) -> Iterator[Draft | Skipped]:
        scope = name_of(_governed(kind, file, self.root) if kind.lists else file)
        empty = True
        try:
            for draft in kind.read(file, self.root):
                empty = False
                yield draft
            if empty:
                yield Skipped(name_of(file), "nothing is in it", unread=_label(name_of(file)))
        except SourceError as error:
            if strict or (len(self.files) == 1 and not self.pictures):
                raise
            yield Draft(name_of(file), partial(broken, str(error)), scope=scope)
        except OSError as error:
            yield Draft(name_of(file), partial(broken, str(error)), scope=scope)

    def _rest(self, claimed: set[int]) -> Iterator[Path | Skipped]:
        """The pictures that no list has ``claimed``, and what is not read; folder by folder."""
        data = set(self.files)
        complete = {_governed(kind, file, self.root) for kind, files in self.data for file in files if _governs(file)}
        for folder, entries in groupby((file for _, file in walk(self.root)), key=lambda file: file.parent):
            listed = not complete.isdisjoint((folder, *folder.parents))
            files = [file for file in entries if file not in data]
            pictures = dict.fromkeys(file for file in files if _kind(file, ALWAYS) is FOLDER or _is_marked(file))
            there, used = set(files), set[Path]()
            for picture in pictures:
                if listed and hash(name_of(picture)) not in claimed:
                    reason = "the list in its folder, or above it, does not name it"
                    yield Skipped(name_of(picture), reason, unread=_label(name_of(picture)))
                elif hash(name_of(picture)) not in claimed:
                    used.update(beside(picture, there.__contains__))
                    yield picture
            for file in files:
                if file not in used and file not in pictures and hash(name_of(file)) not in claimed:
                    yield Skipped(name_of(file), _why_unread(file), unread=_label(name_of(file)))


def read(
    path: str | Path, *, strict: bool = False, report: Callable[[Skipped], object] | None = None
) -> Iterator[Item]:
    """The items of a data folder or file: `recognise`, at once, then `Source.read`."""
    return recognise(path).read(strict=strict, report=report)


def recognise(path: str | Path) -> Source:
    """What kinds of data lie at ``path``, which may be shards at s3://, named by a pattern or one by one.

    Raises SourceError if it is missing or nothing here reads it.
    """
    if is_remote(path):
        return _shards(path)
    given = Path(path)
    if given.is_dir():
        return _folder(given)
    if given.is_file():
        kind = _kind(given, NAMED) or (FOLDER if _is_marked(given) else None)
        if kind is None:
            raise SourceError(f"{given} is not a kind of data that is recognised; allowed: {ALLOWED}")
        return Source(str(path), given.parent, ((kind, (given,)),))
    if not glob.has_magic(str(path)):
        raise SourceError(f"there is no {path}; check the path. Allowed: {ALLOWED}")
    files = tuple(sorted(Path(match) for match in glob.glob(str(path), recursive=True)))
    kinds = {_kind(file, NAMED) for file in files}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        found = (
            f"matches several kinds of files, or some that are not read: {files[0]}, ..."
            if files
            else "matches nothing"
        )
        raise SourceError(f"the pattern {path} {found}; allowed: {ALLOWED}")
    root = Path(*takewhile(lambda part: not glob.has_magic(part), given.parts[:-1]))
    return Source(str(path), root, ((kind, files),))


def _shards(pattern: str | Path) -> Source:
    root, files = matching(pattern)
    if other := next((file for file in files if _kind(file, NAMED) is not WEBDATASET), None):
        raise SourceError(
            f"only {WEBDATASET.title} are read from s3://, and {other} is none; copy it to a folder first"
        )
    return Source(str(pattern), root, ((WEBDATASET, tuple(files)),))


def _folder(folder: Path) -> Source:
    if (folder / MEMORY).is_dir():
        raise SourceError(f"{folder} is a memory, and no data; write what it holds with `racm3 memory export`")
    data: dict[Kind, list[Path]] = {kind: [] for kind in ORDER}
    with_pictures: dict[Path, None] = {}
    for _, file in walk(folder):
        kind = _kind_in_folder(file)
        if kind is FOLDER:
            with_pictures[file.parent] = None
        elif kind is not None:
            data[kind].append(file)
    complete = {_governed(kind, file, folder) for kind, files in data.items() for file in files if _governs(file)}
    pictures = any(complete.isdisjoint((place, *place.parents)) for place in with_pictures)
    if not pictures and not any(data.values()):
        raise SourceError(f"the folder {folder} holds no data that is recognised; allowed: {ALLOWED}")
    found = tuple((kind, tuple(files)) for kind, files in data.items() if files)
    return Source(str(folder), folder, found, folder=True, pictures=pictures)


def _kind_in_folder(file: Path) -> Kind | None:
    """What a file is taken for among others: by its name, or by how it begins."""
    if kind := _kind(file, GOVERNING):
        return kind
    if (kind := _kind(file, OTHER)) and not file.name.endswith(".skipped.jsonl"):
        try:
            return kind if (holds_documents if kind is LIST else names_pictures)(file) else None
        except OSError:
            return kind  # which reading it says
    if (kind := _kind(file, ALWAYS)) and kind is not LIST:
        return kind
    return FOLDER if _is_marked(file) else None


def _kind(file: Path, kinds: Kinds) -> Kind | None:
    """Which of ``kinds`` the name of a file says that it is."""
    name = file.name.lower()
    return next((kind for patterns, kind in kinds if any(fnmatch(name, pattern) for pattern in patterns)), None)


def _governs(file: Path) -> bool:
    return _kind(file, GOVERNING) is not None


def _governed(kind: Kind, file: Path, root: Path) -> Path:
    """The folder whose pictures a list names: its own, or the one above, as of COCO, if no picture is in its own."""
    if kind is not COCO or file.parent == root:
        return file.parent
    try:
        beside_it = any(name.lower().endswith(PICTURE_SUFFIXES) for name in os.listdir(file.parent))
    except OSError:
        beside_it = False
    return file.parent if beside_it else file.parent.parent


def _is_marked(file: Path) -> bool:
    """Whether a file begins as pictures do. A file that cannot be opened is none."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as stream:
            return is_marked(stream.read(32))
    except OSError:
        return False


def _label(origin: str) -> str:
    """The ending of a file's name."""
    return os.path.splitext(origin.rpartition("#")[2])[1].lower() or "without ending"


def _why_unread(file: Path) -> str:
    if file.name == MEMORY:
        return "a memory; `racm3 memory export` writes what it holds as data"
    if file.name.endswith(".skipped.jsonl"):
        return "a report of what was skipped"
    if _kind(file, OTHER):
        return (
            "its beginning holds no document, and names no picture that is here: a table begins with the names of its "
            "columns, such as file_name,text"
        )
    if file.suffix.lower() == JSON_SUFFIX:
        return "no picture of this name is here that needs it; a list is read where its name begins with captions"
    if file.suffix.lower() in TEXT_SUFFIXES:
        return "no picture of this name is here that needs it"
    return "files of this kind are not read"


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
        if top != folder and (MEMORY, True) in entries:
            yield depth, top / MEMORY  # a memory: none of its files is data
            continue
        for name, perhaps_folder in entries:
            if name.startswith("."):
                continue
            if perhaps_folder and os.path.isdir(top / name):  # which, unlike the entry, knows links without an end
                waiting.append((depth + 1, top / name))
            else:
                yield depth, top / name
