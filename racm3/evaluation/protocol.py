"""Protocol: how a number was measured. It lies beside the number in every result file.

It names the ids and how many they are, how pictures are resized, the hashes of memory, encoder and network of features,
settings of decoding and seeds; and of what was measured the hashes of its weights, and the commit of the code. Two
results are comparable if they differ in what was measured alone.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from racm3 import __version__
from racm3.errors import InputError
from racm3.memory.memory import Memory
from racm3.util.config import dotted

__all__ = [
    "about_code",
    "about_memory",
    "check_comparable",
    "digest_of_ids",
    "numbers",
    "read_result",
    "weights_digest",
]

MEASURED = {"weights", "racm3", "commit", "elapsed_s", "note"}
"""What may differ between two results that are compared: what was measured, when and by which version."""


def check_comparable(
    one: Mapping[str, Any], other: Mapping[str, Any], names: tuple[str, str], may_differ: Collection[str] = ()
) -> None:
    """Raises InputError, naming each field, unless two protocols agree in all but what was measured.

    ``names``: of the two results, for the message. ``may_differ``: fields that the comparison is about, such as
    "drawing.k", or "drawing" for all below it.
    """
    ours, theirs = dotted(one), dotted(other)
    ignored = tuple(f"{name}." for name in MEASURED | set(may_differ))
    wrong = [
        f"{field}: {ours.get(field, 'missing')} and {theirs.get(field, 'missing')}"
        for field in sorted(ours.keys() | theirs.keys())
        if not f"{field}.".startswith(ignored) and ours.get(field) != theirs.get(field)
    ]
    if wrong:
        raise InputError(
            f"{names[0]} and {names[1]} were not measured alike, so their numbers do not compare: {'; '.join(wrong)}. "
            "Measure one of them again with the other's settings, or say that this is what you compare"
        )


def read_result(file: Path) -> dict[str, Any]:
    """What a result file holds. Raises InputError if it is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found["protocol"], dict):
            return dict(found)
        reason = "its protocol is no table"
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{file} is no result file of racm3 ({reason}); give one that an evaluate command wrote")


def numbers(result: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """The scores of a result file by dotted name; rows of a table are named by their labels."""
    found: dict[str, float] = {}
    for key, value in result.items():
        if isinstance(value, Mapping) and key not in ("protocol", "interval", "settings", "sheet", "curve"):
            found |= numbers(value, f"{above}{key}.")
        elif key == "rows":
            for row in value:
                labels = [str(row[name]) for name in row if name not in ("n", "interval", *row["interval"])]
                found |= {f"{above}{', '.join(labels)}.{score}": row[score] for score in row["interval"]}
        elif isinstance(value, (int, float)) and key != "n":
            found[f"{above}{key}"] = value
    return found


def about_code() -> dict[str, str]:
    """``racm3``, the version, and ``commit``: of the checkout that the code is in, "unknown" if it is in none; with
    "+" behind it if files of it are changed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # An installed package may lie in the checkout of another project.
        tracked = git("ls-files", Path(__file__).name)
        commit = git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        tracked = commit = ""
    return {"racm3": __version__, "commit": commit if tracked else "unknown"}


def about_memory(memory: Memory, source: str) -> dict[str, Any]:
    """What a memory holds, and where that is from."""
    return {"source": source, "documents": len(memory), "hash": memory.fingerprint}


def digest_of_ids(ids: Iterable[str]) -> str:
    """16 hex digits of ids in their order."""
    return hashlib.blake2b("\n".join(ids).encode(), digest_size=8).hexdigest()


def weights_digest(folder: Path) -> str:
    """16 hex digits of a model's weights file."""
    return hashlib.blake2b((folder / "model.safetensors").read_bytes(), digest_size=8).hexdigest()
