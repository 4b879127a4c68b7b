"""Which of some labels a picture has, from examples that the generator reads as if they had been retrieved.

By picture: behind one example of each label in turn, and under that label, how probable is the picture? The labels are
equally probable beforehand, so by the rule of Bayes the shares of these probabilities are those of the labels:

    <doc> <text> X <image> c c c ... </doc> <doc> <text> X <image> | c c c ...

By label, the protocol of the paper: behind an example of each of two labels, how probable is each as the text of the
picture? Of more than two labels every pair has a context, and these are averaged:

    <doc> <text> Y <image> ... </doc> <doc> <text> X <image> ... </doc> <doc> <text> <mask:0> <image> ... | X

A picture is dozens of codes, each of which an example of the right label helps to predict; a label that means nothing
is a few ids, and to tell which example it stands with is all that can be learnt from it. N pictures, L labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch

from racm3.document import Document, Hole, Image
from racm3.errors import InputError
from racm3.generator.engine import Engine
from racm3.generator.prompt import build_prompt
from racm3.tokens.codec import Codec, image_codes, token_documents
from racm3.tokens.markup import Markup
from racm3.tokens.parts import ImageCodes, TextIds, TokenDocument

By = Literal["picture", "label"]


def compare(
    engine: Engine,
    codec: Codec,
    markup: Markup,
    images: Sequence[Image],
    examples: Mapping[str, Sequence[Image]],
    by: By = "picture",
) -> np.ndarray:
    """How probable each label is for each picture, from each shot by itself: (N, shots, L), sums of 1 over the labels.

    ``examples``: pictures of each label, equally many. Raises InputError if they are not, or there are fewer than two
    labels, PromptTooLongError.
    """
    counts = {label: len(shown) for label, shown in examples.items()}
    if len(counts) < 2 or len(set(counts.values())) != 1 or 0 in counts.values():
        raise InputError(f"give two labels or more, with equally many pictures of each, 1 or more; not {counts}")
    shown = [
        token_documents([Document.of(label, image) for image in own], codec.text, codec.image)
        for label, own in examples.items()
    ]
    codes = image_codes(images, codec.image).tolist() if images else []
    pictures = [ImageCodes(tuple(own)) for own in codes]
    return (by_picture if by == "picture" else by_label)(engine, markup, pictures, shown)


def by_picture(
    engine: Engine, markup: Markup, pictures: Sequence[ImageCodes], examples: Sequence[Sequence[TokenDocument]]
) -> np.ndarray:
    """(pictures, shots, labels) probabilities of each label: how probable the picture is behind its example."""
    contexts = [document for shot in zip(*examples, strict=True) for document in shot]  # shot by shot, label by label
    prompts = [build_prompt([one], [_label(one), Hole("image")], markup, 1).ids for one in contexts]
    asked = [[markup.vocabulary.image_start + code for code in picture.codes] for picture in pictures]
    scores = engine.score(prompts * len(asked), [codes for codes in asked for _ in prompts])
    sums = torch.tensor([float(score.sum(dtype=np.float64)) for score in scores], dtype=torch.float64)
    return sums.view(len(pictures), len(examples[0]), len(examples)).softmax(-1).numpy()


def by_label(
    engine: Engine, markup: Markup, pictures: Sequence[ImageCodes], examples: Sequence[Sequence[TokenDocument]]
) -> np.ndarray:
    """(pictures, shots, labels) probabilities of each label as the picture's text, behind examples of two labels."""
    v, labels, shots = markup.vocabulary, len(examples), len(examples[0])
    fillings = [[*(v.text_start + id_ for id_ in _label(own[0]).ids), v.eos] for own in examples]
    places, prompts, asked = [], [], []
    for number, picture in enumerate(pictures):
        for shot in range(shots):
            for pair in combinations(range(labels), 2):
                # Shots take turns at which label's example is read last.
                context = [examples[label][shot] for label in (pair if shot % 2 else pair[::-1])]
                prompt = build_prompt(context, [Hole("text"), picture], markup, 1)
                places.append((number, shot, list(pair)))
                prompts += [prompt.ids] * 2
                asked += [fillings[label] for label in pair]
    scores = [float(score.sum()) for score in engine.score(prompts, asked)]
    shares = np.zeros((len(pictures), shots, labels))
    for place, own in zip(places, torch.tensor(scores).view(-1, 2).softmax(-1).numpy(), strict=True):
        shares[place] += own
    return shares / math.comb(labels, 2)


def _label(example: TokenDocument) -> TextIds:
    return next(part for part in example if isinstance(part, TextIds))
