"""Verbs that make data to train on: filtered shards, and the built-in world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from racm3.cli.option_blocks import load_encoder
from racm3.cli.option_types import Folder, FolderArgument, OptionalFile, OptionalFolder, Overrides
from racm3.cli.verb import Verb
from racm3.util.progress import counted, progress

if TYPE_CHECKING:
    import numpy as np

    from racm3.data.filter import Score
    from racm3.document import Document
    from racm3.retriever.encoder import Encoder


class DataFilter(Verb, name="data filter"):
    """Keep the good pairs of WebDataset shards, and say what was dropped. The same command goes on where it stopped."""

    # Shards as img2dataset writes them: a folder, one of them, or a pattern in quotes.
    shards: Positional[Annotated[str, arg(metavar="SHARDS")]]
    out: Folder  # Where the filtered shards go, under the same names; the given ones stay as they are.
    encoder: OptionalFolder = None  # A CLIP that scores each pair; the score is written into its .json as clip_score.
    # Settings of racm3.data.filter.Rules, such as min_side_px=256 max_watermark=0.5 min_clip_score=0.28.
    set: Overrides = ()

    def run(self) -> None:
        from racm3.data import recognise
        from racm3.data.filter import Rules, filter_shards
        from racm3.util.config import override

        rules, source = override(Rules(), self.set), recognise(self.shards)
        score = clip_score(load_encoder(self.encoder)) if self.encoder else None
        counts: Counter[str] = Counter()
        with progress() as report:
            for of_shard in counted(filter_shards(source, self.out, rules, score), "filtering shards", report):
                counts.update(of_shard)
        for what, count in counts.most_common():
            print(f"{count:>12,}  {what}")
        print(f"wrote {self.out}")


class ScenesMake(Verb, name="scenes make"):
    """Write the built-in world: its training splits as WebDataset shards, the others in COCO format."""

    folder: FolderArgument  # Where to; made if it is not there.
    set: Overrides = ()  # Settings of racm3.scenes.world.World, such as seed=1 tests=100.

    def run(self) -> None:
        from racm3.scenes.world import World
        from racm3.util.config import override

        override(World(), self.set).write(self.folder)
        print(f"wrote {self.folder}")


class ScenesGlyphs(Verb, name="scenes glyphs"):
    """Draw the entities of the built-in world from the emoji font again. The package already holds them."""

    # NotoColorEmoji.ttf; by default the one that Debian's fonts-noto-color-emoji installs.
    font: OptionalFile = None
    folder: OptionalFolder = None  # Where to write glyphs.webp and glyphs.json; by default into the package.

    def run(self) -> None:
        from racm3.scenes import glyphs

        folder = self.folder or glyphs.DATA
        made = glyphs.make_glyphs(self.font or glyphs.FONT, folder)
        print(f"drew {len(made.names)} entities into {folder}")


def clip_score(encoder: Encoder) -> Score:
    """What gives the cosine of the text and the picture of each of N documents, (N,)."""

    def score(pairs: Sequence[Document]) -> np.ndarray:
        texts = encoder.embed_texts([pair.text or "" for pair in pairs])  # (N, D)
        return (texts * encoder.embed_images([pair.images[0] for pair in pairs])).sum(axis=1)

    return score
