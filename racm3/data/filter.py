"""Keep the good pairs of WebDataset shards: the first step from a web crawl to training data.

Shard by shard, NAME.tar gives OUT/NAME.tar, whose members are the bytes that were there, and OUT/NAME_filter.json,
which is written last: the same command goes on after what is done. Processes may share the work, each with its shards.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from racm3.data.item import Item, json_object
from racm3.data.reading import WEBDATASET, Source
from racm3.data.webdataset import DAMAGE, Sample, id_prefix, sample_item, samples
from racm3.document import Document
from racm3.errors import ConfigError, InputError, SourceError

__all__ = ["Rules", "filter_shards"]

SCORED_AT_ONCE = 64
CLIP_SCORE = "clip_score"


@dataclass(frozen=True)
class Rules:
    """What a pair has to fulfil. The defaults are ours, but for ``max_watermark``.

    ``min_side_px``: of the shorter side of the picture. ``max_aspect``: longer side / shorter side.
    ``max_watermark``: of the probability that the picture has a watermark, ``pwatermark`` in LAION's metadata, where
    there is one (0.8 is what LAION's own subsets use). ``min_clip_score``: of the cosine of caption and picture; each
    encoder has its own scale, so none unless given (LAION-400M kept 0.3 and more of CLIP ViT-B/32).
    """

    min_side_px: int = 200
    max_aspect: float = 3.0
    min_caption_chars: int = 5
    max_caption_chars: int = 1000
    max_watermark: float = 0.8
    min_clip_score: float | None = None

    def __post_init__(self) -> None:
        if min(self.min_side_px, self.min_caption_chars) < 1 or self.max_aspect < 1:
            raise ConfigError("min_side_px >= 1, min_caption_chars >= 1 and max_aspect >= 1 are needed")
        if self.max_caption_chars < self.min_caption_chars:
            raise ConfigError("max_caption_chars is less than min_caption_chars: nothing would be kept")

    def against(self, item: Item) -> str | None:
        """The first rule that a pair breaks, but for its score; None if it fulfils all."""
        if not item.document.images or not item.document.text:
            return "no picture or no caption"
        height, width = item.document.images[0].pixels.shape[:2]
        short, long = sorted((height, width))
        watermark = item.metadata.get("pwatermark")
        if short < self.min_side_px:
            return f"shorter side under {self.min_side_px} px"
        if long > self.max_aspect * short:
            return f"longer than {self.max_aspect:g} x its shorter side"
        if not self.min_caption_chars <= len(item.document.text) <= self.max_caption_chars:
            return f"caption not of {self.min_caption_chars} to {self.max_caption_chars} characters"
        if isinstance(watermark, float | int) and watermark > self.max_watermark:
            return f"watermark more probable than {self.max_watermark:g}"
        return None


Score = Callable[[Sequence[Document]], np.ndarray]
"""(N,) cosines of the text and the picture of N documents."""


def filter_shards(source: Source, out: Path, rules: Rules, score: Score | None) -> Iterator[Counter[str]]:
    """Filter every shard of ``source`` into ``out``; a count for each: of what was kept, and dropped by which rule.

    With ``score``, the score of what is kept is written into its .json. Raises SourceError if ``source`` is no shards,
    or if a shard in ``out`` was made by other rules; ConfigError if a rule needs a score and there is none.
    """
    if source.kinds != (WEBDATASET,):
        raise SourceError(f"{source.path} is {source.title}; only WebDataset shards are filtered")
    if rules.min_clip_score is not None and score is None:
        raise ConfigError("min_clip_score needs an encoder that scores; give one")
    if out.resolve() == source.root.resolve():
        raise SourceError(f"{out} is where the shards come from; give another folder, and they stay as they are")
    for shard in source.files:
        yield filter_shard(shard, out / id_prefix(shard, source.root), rules, score)


def filter_shard(shard: Path, target: Path, rules: Rules, score: Score | None) -> Counter[str]:
    """Filter one shard into ``target``.tar, unless that is done."""
    made, done = target.with_name(target.name + ".tar"), target.with_name(target.name + "_filter.json")
    about = {**asdict(rules), "scored": score is not None}
    if done.exists():
        record = json.loads(done.read_text(encoding="utf-8"))
        if record["rules"] != about:
            raise SourceError(f"{made} was filtered by other rules, {record['rules']}; give another folder, or those")
        return Counter(record["counts"])
    made.parent.mkdir(parents=True, exist_ok=True)
    part = made.with_name(made.name + ".part")
    counts: Counter[str] = Counter()
    with part.open("wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for sample in _kept(shard, rules, score, counts):
            counts["kept"] += 1
            for extension, data in sample.members.items():
                member = tarfile.TarInfo(f"{sample.key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        tar.close()
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(made)
    part = done.with_name(done.name + ".part")
    part.write_text(json.dumps({"rules": about, "counts": counts}, indent=1) + "\n", encoding="utf-8")
    part.replace(done)
    return counts


def _kept(shard: Path, rules: Rules, score: Score | None, counts: Counter[str]) -> Iterator[Sample]:
    """The samples that fulfil the rules; the others are counted."""
    waiting: list[tuple[Sample, Document]] = []
    try:
        for sample in samples(shard):
            try:
                item = sample_item(sample, sample.key, str(shard))
            except InputError:
                counts["broken"] += 1
                continue
            if broken_rule := rules.against(item):
                counts[broken_rule] += 1
                continue
            waiting.append((sample, item.document))
            if len(waiting) == SCORED_AT_ONCE:
                yield from _scored(waiting, rules, score, counts)
                waiting = []
    except DAMAGE:
        counts["the rest of a damaged shard"] += 1
    yield from _scored(waiting, rules, score, counts)


def _scored(
    waiting: list[tuple[Sample, Document]], rules: Rules, score: Score | None, counts: Counter[str]
) -> Iterator[Sample]:
    if score is None or not waiting:
        yield from (sample for sample, _ in waiting)
        return
    scores = score([document for _, document in waiting])
    for (sample, _), cosine in zip(waiting, scores, strict=True):
        if rules.min_clip_score is not None and cosine < rules.min_clip_score:
            counts[f"CLIP score under {rules.min_clip_score:g}"] += 1
            continue
        record = {**json_object(sample.members.get("json", b"{}")), CLIP_SCORE: round(float(cosine), 4)}
        sample.members["json"] = json.dumps(record, ensure_ascii=False).encode()
        yield sample
