"""A generator that copies before it has learnt anything: its first two layers begin as a copying circuit.

    layer 1    heads look 1, W - 1 and W tokens back (W codes a row), and to the place of the code to come in the last
               three documents, S tokens each; they note the digits found there
    layer 2    heads look for the token whose left neighbour is this one, whose upper neighbour is that of the code to
               come, and for both at once; what stands there, they say, comes next. Another one says what stands at the
               same place of the documents

This is the induction head of Olsson et al. (2022, arXiv 2209.11895), in two dimensions and written down instead of
found. Left to chance, copying came after some 12,000 sequences. Only the beginning is set; all of it is trained.

D width, E width of a head, G digits of all places together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from racm3.errors import ConfigError
from racm3.generator.model import INIT_STD, Attention, Layer
from racm3.open_scenes.digit_generator import DigitGenerator
from racm3.tokens.vocabulary import Vocabulary

QUIET = 0.1
"""What is left of the chance in the weights beside those that are set."""

SOFTNESS = 0.5
"""Standard deviation, in digits, within which two digits count as alike."""

SHARPNESS = 2.2
"""Weight of the norms of queries and keys in both layers: a head of 64 can then tell 38 nats apart."""

NOTED, SAID = 0.7, 1.5
"""What the heads of the first and the second layer add, relative to the digits of an embedding."""

DOCUMENTS = 3
"""Documents before the main one in which the same place is looked up."""

CERTAINTY = 3.0
"""Weight of the last norm: how sure the model is of what it copies."""

FAR_TOKENS = 1000
"""So far apart the slower half of the rotary positions still points about the same way."""


@torch.no_grad()
def begin_by_copying(generator: DigitGenerator, columns: int, stride: int) -> None:
    """Set the first two layers of a new generator, whose pictures have ``columns`` codes a row and stand ``stride``
    tokens apart.

    Raises ConfigError where width, heads or rotary positions leave no room for it.
    """
    config, table = generator.config, generator.table
    size, count, pairs = config.head_dim, len(table.digits), config.head_dim // 2
    beside = (1, columns - 1, columns)
    before = tuple(number * stride - 1 for number in range(1, DOCUMENTS + 1))
    looked = (*beside, *before)
    turned = config.rope_theta**-0.5 * FAR_TOKENS  # radians, by the fastest of the slower half
    room = (len(looked) + 1) * count
    if turned > 1.1 or count > pairs or room >= config.width or not len(looked) <= config.heads == config.kv_heads:
        raise ConfigError(
            f"copying needs {len(looked)} heads with keys of their own, each >= {2 * count} wide, a width above {room} "
            f"and rope_theta >= 1e6; given {config.heads} heads of {size}, width {config.width}, {config.rope_theta:g}"
        )
    # Places in the residual stream: of a code's own digits, and of those that are found so many tokens back.
    own, *found = (slice(i * count, (i + 1) * count) for i in range(len(looked) + 1))
    left, corner, above = found[: len(beside)]
    constant = room  # a place that is the same for all tokens, so that a head can look at a distance alone
    marks = _mark(generator, constant)
    generator.model.norm.weight.fill_(CERTAINTY)
    first, second = (cast(Layer, generator.model.layers[i]).self_attn for i in (0, 1))
    for attention in (first, second):
        attention.q_norm.weight.fill_(SHARPNESS)
        attention.k_norm.weight.fill_(SHARPNESS)

    def look_back(attention: Attention, head: int, tokens: int) -> None:
        rows = slice(head * size, (head + 1) * size)
        for weight, turn in ((attention.k_proj.weight, 0), (attention.q_proj.weight, tokens)):
            weight[rows] *= QUIET
            weight[rows, constant] = _pointing(float(turn), pairs, config.rope_theta)

    def say(attention: Attention, head: int, read: Sequence[slice], place: slice, strength: float, seen: float) -> None:
        """Let a head add the digits at some places of what it looks at to a place of the stream; ``seen``: their length
        behind a norm."""
        rows = slice(head * size, (head + 1) * size)
        attention.v_proj.weight[rows] *= QUIET
        attention.o_proj.weight[:, rows] *= QUIET
        share = math.sqrt(strength * marks / seen) * torch.eye(count)
        for one in read:
            attention.v_proj.weight[rows, one][:count] = share
        attention.o_proj.weight[place, rows][:, :count] = share

    length = math.sqrt(config.width)  # of what comes out of a norm
    for head, (back, place) in enumerate(zip(looked, found, strict=True)):
        look_back(first, head, back)
        say(first, head, [own], place, NOTED, length / math.sqrt(2))
    seen = length / math.sqrt(2 + len(looked) * NOTED**2)
    nothing = torch.zeros(pairs, count)
    one = torch.cat((torch.eye(count), torch.zeros(pairs - count, count)))
    halves = [nn.init.orthogonal_(torch.empty(pairs // 2, count)) for _ in range(2)]
    both = torch.cat((halves[0], nothing[: pairs // 2])), torch.cat((nothing[: pairs // 2], halves[1]))
    for head, (of_left, of_above) in enumerate(((one, nothing), (nothing, one), both)):
        every = torch.arange(head * size, (head + 1) * size)
        rows = slice(head * size, (head + 1) * size)
        places = torch.cat((every[pairs // 2 : pairs], every[pairs + pairs // 2 :]))  # the slower half of the pairs
        queries, keys = second.q_proj.weight, second.k_proj.weight
        for weight, at_left, at_above in ((queries, own, corner), (keys, left, above)):
            weight[rows] *= QUIET
            weight[places, at_left] += of_left
            weight[places, at_above] += of_above
        say(second, head, [own], own, SAID, seen)
    here = len(beside)
    look_back(second, here, 0)
    say(second, here, found[len(beside) :], own, SAID, seen)


def _mark(generator: DigitGenerator, constant: int) -> float:
    """Give each code marks for its digits, alike for digits that are neighbours, and return their length.

    Words get marks by chance, so that they are copied in the same way. Marks are half of what an embedding is: as long
    as the rest of it, which is left to chance.
    """
    table, count = generator.table, len(generator.table.digits)
    table.own[:, :constant] *= QUIET
    table.own[:, constant] = 4 * INIT_STD
    table.digits[:, : constant + 1] = 0
    start = 0
    for level in table.levels:
        places = slice(start, start + level)
        far = torch.arange(level)[:, None] - torch.arange(level)
        likeness = torch.exp(-0.5 * (far / SOFTNESS) ** 2)
        table.digits[places, places] = likeness - likeness.mean(1, keepdim=True)
        start += level
    codes = table.weight[table.text_size :]
    length = float(codes[:, count:].square().sum(1).mean().sqrt())
    table.digits[:, :count] *= length / float(codes[:, :count].square().sum(1).mean().sqrt())
    words = slice(Vocabulary.text_start, table.text_size)
    table.own[words, :count] = length * F.normalize(
        torch.randn(table.text_size - words.start, count, generator=torch.Generator().manual_seed(0)), dim=1
    )
    return length


def _pointing(turn: float, pairs: int, theta: float) -> Tensor:
    """(E,) the direction of a query that is turned back by a distance; the fast pairs tell neighbours apart, the others
    what is far."""
    count = pairs // 2
    angles = turn * theta ** -(torch.arange(count) / pairs)
    length = torch.where(torch.arange(count) < count // 4, 1.6, 0.7)
    first, second = torch.zeros(pairs), torch.zeros(pairs)
    first[:count], second[:count] = length * angles.cos(), -length * angles.sin()
    return torch.cat((first, second))
