"""Whether a change of the code changed what the models do: 100 completions and the loss of 50 steps, bit by bit.

    python tests/equal_behaviour.py record before.json      on the code as it was
    python tests/equal_behaviour.py record after.json       on the code as it is, on the same machine
    python tests/equal_behaviour.py compare before.json after.json

``record`` uses public names only, so the same file runs on both. A completion is its texts, the bytes of its pictures,
its sources and the log-probability of its tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from racm3 import RACM3, Document, Hole, Image, Text
from racm3.pipeline import Settings
from racm3.scenes.world import World

LOSS_STEPS = 50
BOX = (16, 16, 32, 24)


def main() -> int:
    """Record or compare, as the arguments say; exit status 1 if two recordings differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("record", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    given = parser.parse_args()
    if given.verb == "record":
        (file,) = given.files
        file.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
        return 0
    before, after = (json.loads(file.read_text(encoding="utf-8")) for file in given.files)
    differing = [name for name in before | after if before.get(name) != after.get(name)]
    for name in differing:
        print(f"{name}\n  before {before.get(name)}\n  after  {after.get(name)}")
    print(json.dumps({"compared": len(before | after), "differing": len(differing)}))
    return int(bool(differing))


def record() -> dict[str, Any]:
    """What the models do, by name."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        world = World()
        subprocess.run(
            [sys.executable, "-m", "racm3.cli", "scenes", "make", folder, "--set", "memory=2", "train=2", "tests=64"],
            check=True,
            stdout=sys.stderr,
        )
        memory, train = Path(folder) / "made", Path(folder) / "train"
        subprocess.run(
            [sys.executable, "-m", "racm3.cli", "memory", "create", str(memory), str(Path(folder) / "memory")],
            check=True,
            stdout=sys.stderr,
        )
        found = dict(completions(RACM3.from_pretrained("scenes", memory), world))
        found["loss"] = losses(train, Path(folder) / "models" / "generator")
    return found


def completions(model: RACM3, world: World) -> Iterator[tuple[str, Any]]:
    """(name, completion) of every kind of request: 100 of them, and two classifications."""
    settings = Settings(seed=11)
    items = [
        item for split in ("test-novel", "test-seen") for item in islice(world.items(split), 24)
    ]  # as many of entities that the generator never met as of others
    documents = [item.document for item in items]
    pictures = [document.images[0] for document in documents]
    captions = [document.text or "" for document in documents]
    asked: dict[str, tuple[list[Document], Settings, Any]] = {
        "draw": ([Document.of(words, Hole("image")) for words in captions[:24]], settings, None),
        "draw-guided": (
            [Document.of(words, Hole("image")) for words in captions[24:30]],
            replace(settings, image=replace(settings.image, guidance=1.5)),
            None,
        ),
        "draw-best-of-3": (
            [Document.of(words, Hole("image")) for words in captions[30:33]],
            replace(settings, samples=3),
            None,
        ),
        "draw-two-contexts": (
            [Document.of(words, Hole("image")) for words in captions[33:37]],
            replace(settings, contexts=2),
            None,
        ),
        "draw-without-memory": (
            [Document.of(words, Hole("image")) for words in captions[37:41]],
            replace(settings, k=0),
            None,
        ),
        "draw-likeliest": (
            [Document.of(words, Hole("image")) for words in captions[41:45]],
            replace(settings, image=replace(settings.image, temperature=0.0)),
            None,
        ),
        "caption": ([Document.of(Hole("text"), picture) for picture in pictures[:16]], settings, None),
        "caption-sampled": (
            [Document.of(Hole("text"), picture) for picture in pictures[16:20]],
            replace(settings, samples=4, text=replace(settings.text, temperature=1.0)),
            None,
        ),
        "infill": (
            [
                Document.of(words, picture.hiding(BOX))
                for words, picture in zip(captions[:12], pictures[:12], strict=True)
            ],
            settings,
            None,
        ),
        "infill-wordless": ([Document.of(picture.hiding(BOX)) for picture in pictures[12:18]], settings, None),
        "infill-text": (
            [
                Document.of(Text(words, hidden=(2, 6)), picture)
                for words, picture in zip(captions[18:24], pictures[18:24], strict=True)
            ],
            settings,
            None,
        ),
        "edit": (
            [Document.of(picture.hiding(BOX)) for picture in pictures[24:32]],
            settings,
            [[Document.of(control)] for control in pictures[:8]],
        ),
        "two-holes": ([Document.of(Hole("text"), Hole("image")) for _ in range(3)], replace(settings, k=0), None),
    }
    for name, (requests, how, retrieved) in asked.items():
        for i, done in enumerate(model.complete(requests, how, retrieved=retrieved)):
            yield f"{name}-{i}", _told(done)
    for by in ("picture", "label"):
        examples = {"a": pictures[:2], "b": pictures[2:4]}
        yield f"classify-{by}", model.classify(pictures[4:8], examples, by)


def _told(done: Any) -> dict[str, Any]:
    return {
        "texts": [part.text for part in done.document.parts if isinstance(part, Text)],
        "pictures": [
            hashlib.blake2b(part.pixels.tobytes(), digest_size=8).hexdigest()
            for part in done.document.parts
            if isinstance(part, Image)
        ],
        "sources": [[hit.id, hit.score] for hit in done.sources],
        "score": done.score,
    }


def losses(data: Path, out: Path) -> list[float]:
    """The loss of each of the first steps of a generator that is trained on ``data``."""
    weights = Path(sys.modules["racm3"].__file__ or "").parent / "weights" / "scenes"
    subprocess.run(
        [sys.executable, "-m", "racm3.cli", "train", "generator", str(data), "--out", str(out)]
        + ["--image-tokenizer", str(weights / "image-tokenizer"), "--encoder", str(weights / "encoder")]
        + ["--set", f"loop.steps={LOSS_STEPS}", "loop.log_every_s=0", "loop.threads=1", "tokens_per_step=1024"],
        check=True,
        stdout=sys.stderr,
    )
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
