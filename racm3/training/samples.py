"""The sheet of sample pictures that a generator draws while it is trained: what it makes of a few documents' words."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import torch

from racm3.document import Hole, Image
from racm3.generator.engine import Engine, SequenceRequest
from racm3.generator.model import Generator
from racm3.generator.prompt import answer_constraint, build_prompt
from racm3.generator.sampling import Sampling
from racm3.tokens.image_tokenizer import ImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.training.prepare import TrainingSet
from racm3.util.contact_sheet import Tile, sheet

DOCUMENTS = 4
"""Pictures on a sheet: enough to see what goes wrong, few enough to cost seconds."""


def draw_sheet(
    generator: Generator, data: TrainingSet, markup: Markup, image: ImageTokenizer, path: Path, k: int
) -> None:
    """Write a sheet of two rows: pictures of the data as the image tokenizer keeps them, and below each what the
    generator draws from its words and ``k`` retrieved documents. The same documents, those held out if there are any,
    and the same seeds every time."""
    requests: list[SequenceRequest] = []
    codes: list[np.ndarray] = []
    for row in chain(sorted(data.held_out), range(len(data.ids))):
        document = markup.from_ids(data.ids[row])
        texts = [part for part in document if isinstance(part, TextIds)]
        pictures = [part for part in document if isinstance(part, ImageCodes)]
        if not (texts and pictures):
            continue
        others = [] if data.neighbours is None else data.neighbours[row, 0, :k].tolist()
        retrieved = [markup.from_ids(data.ids[i]) for i in others if i >= 0 and i not in data.held_out]
        prompt = build_prompt(retrieved, [*texts, Hole("image")], markup, 1)
        requests.append(
            SequenceRequest(prompt.ids, answer_constraint(prompt.spans, markup.vocabulary), Sampling(), seed=row)
        )
        codes.append(np.array(pictures[0].codes))
        if len(requests) == DOCUMENTS:
            break
    if not requests:
        return
    outputs = Engine(generator, markup.vocabulary).run(requests)
    codes += [np.array(done.tokens) - markup.vocabulary.image_start for done in outputs]
    pixels = image.decode(torch.from_numpy(np.stack(codes))).permute(0, 2, 3, 1)  # (2 N, H, W, 3)
    tiles = [Tile(Image(one)) for one in (pixels * 255).round().to(torch.uint8).numpy()]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet([tiles[: len(requests)], tiles[len(requests) :]], pixels.shape[1]).save(path)
