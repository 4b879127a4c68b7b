"""Captions: what a scene shows, in the wordings that people use.

Some wordings are held out: nothing is trained on them. A caption says what stands there; often where, and before what.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from racm3.errors import ConfigError, unknown
from racm3.open_scenes.art import Art, load_art
from racm3.open_scenes.grounds import COLOURS
from racm3.open_scenes.scene import Scene, position
from racm3.scenes.caption import plural, with_article

TRAINED = ("plain", "photo", "request", "keywords", "title", "upper", "front", "alt")
HELD_OUT = ("question", "typos", "story", "tags")
WORDINGS = (*TRAINED, *HELD_OUT)

NUMBERS = {2: "two", 3: "three", 4: "four"}

WHERE = {
    "top left": ("at the top left", "in the upper left corner", "in the top left corner", "upper left"),
    "top": ("at the top", "in the upper part", "near the top edge"),
    "top right": ("at the top right", "in the upper right corner", "in the top right corner", "upper right"),
    "left": ("on the left", "at the left", "on the left side", "to the left"),
    "centre": ("in the centre", "in the middle", "in the center"),
    "right": ("on the right", "at the right", "on the right side", "to the right"),
    "bottom left": ("at the bottom left", "in the lower left corner", "in the bottom left corner", "lower left"),
    "bottom": ("at the bottom", "in the lower part", "near the bottom edge"),
    "bottom right": ("at the bottom right", "in the lower right corner", "in the bottom right corner", "lower right"),
}
"""Phrases of a place; a caption of keywords takes its name."""

INSIDE = frozenset(
    "fog snow|deep water|a living room|a stream in the woods|a field of dandelions|a purple haze|a starry night|"
    "an evening sky|a cloudy sky|the sea|a desert|a fairy-tale valley".replace("fog ", "fog|").split("|")
)
"""What one is in; one is on or in front of anything else."""

STYLE_PHRASES = {
    "sepia": "a sepia picture of ",
    "grey": "a black and white picture of ",
    "negative": "a negative of ",
    "sketch": "a pencil sketch of ",
    "mosaic": "a mosaic of ",
}


@dataclass(frozen=True)
class Facts:
    """What a caption is made from: a name and place (or none) for each entity, the background (or none), the style."""

    things: tuple[tuple[str, str | None], ...]
    ground: str | None
    style: str = "plain"


def facts(
    scene: Scene,
    rng: random.Random,
    art: Art | None = None,
    *,
    names: Mapping[str, str] | None = None,
    places: float = 0.75,
    grounds: float = 0.8,
) -> Facts:
    """The facts of a scene that a caption tells: places and background with these chances.

    ``names`` are what to call cut-outs, by id. The centre mostly goes without saying.
    """
    art = art or load_art()
    names = names or {}
    say_place = rng.random() < places
    things = []
    for one in scene.placed:
        cutout = art.by_id[one.cutout]
        place = position(one.box(art))
        told = say_place and (place != "centre" or rng.random() < 0.3)
        things.append((names.get(one.cutout, cutout.name), place if told else None))
    ground = scene.ground.name if rng.random() < grounds else None
    return Facts(tuple(things), ground, scene.style)


def describe(told: Facts, wording: str, rng: random.Random) -> str:
    """A caption in a wording. Raises ConfigError for one that does not exist."""
    if wording not in WORDINGS:
        raise ConfigError(unknown("wording", wording, WORDINGS))
    return _WORDINGS[wording](told, rng)


def behind(ground: str | None, rng: random.Random) -> str:
    """``on a red background``, ``in the snow``, ``with rocky mountains behind``; nothing for no ground."""
    if ground is None:
        return ""
    if ground in COLOURS:
        return rng.choice((f"on {with_article(ground)} background", f"against {ground}", f"on {ground}"))
    near = "in" if ground in INSIDE else rng.choice(("on", "in front of"))
    return rng.choice((f"{near} {ground}", f"{near} {ground}", f"with {ground} behind", f"against {ground}"))


def subject(told: Facts, rng: random.Random, places: bool = True) -> str:
    """``a fox on the left and a cake at the top``; equal things are counted."""
    phrases = []
    names = [name for name, _ in told.things]
    for name in dict.fromkeys(names):
        count = names.count(name)
        words = with_article(name) if count == 1 else f"{NUMBERS.get(count, count)} {plural(name)}"
        place = next(place for other, place in told.things if other == name) if count == 1 and places else None
        phrases.append(f"{words} {rng.choice(WHERE[place])}" if place else words)
    return STYLE_PHRASES.get(told.style, "") + joined(phrases)


def joined(phrases: Sequence[str]) -> str:
    """``a, b and c``."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _sentence(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _plain(told: Facts, rng: random.Random) -> str:
    if len(told.things) == 1 and rng.random() < 0.5:
        place = told.things[0][1]
        words = _sentence(subject(told, rng, places=False), behind(told.ground, rng))
        return f"{words}, {rng.choice(WHERE[place])}" if place else words
    return _sentence(subject(told, rng), behind(told.ground, rng))


def _photo(told: Facts, rng: random.Random) -> str:
    start = rng.choice(("photo of", "picture of", "an image of", "a picture showing"))
    return f"{start} {subject(told, rng)}" + (f", {told.ground}" if told.ground else "")


def _request(told: Facts, rng: random.Random) -> str:
    start = rng.choice(("please draw", "draw me", "paint", "show me", "I want", "make a picture of"))
    return f"{start} {_plain(told, rng)}"


def _keywords(told: Facts, rng: random.Random) -> str:  # noqa: ARG001  # as all wordings are called
    words = [word for name, place in told.things for word in (name, place) if word]
    words += [told.style] if told.style != "plain" else []
    return ", ".join([*words, *([re.sub("^(an?|the) ", "", told.ground)] if told.ground else [])])


def _title(told: Facts, rng: random.Random) -> str:
    small = {"a", "an", "the", "of", "on", "in", "and", "at", "with", "to"}
    words = _plain(told, rng).split()
    return " ".join(word if i and word in small else word[:1].upper() + word[1:] for i, word in enumerate(words))


def _upper(told: Facts, rng: random.Random) -> str:
    return _plain(told, rng).upper()


def _front(told: Facts, rng: random.Random) -> str:
    name, place = told.things[0]
    if len(told.things) > 1 or not place:
        words = behind(told.ground, rng)
        return f"{words}: {subject(told, rng)}" if words else subject(told, rng)
    return f"{rng.choice(WHERE[place])}, {_sentence(subject(told, rng, places=False), behind(told.ground, rng))}"


def _alt(told: Facts, rng: random.Random) -> str:
    words = f"There is {subject(told, rng)}."
    return f"{words} The background is {told.ground}." if told.ground else words


def _question(told: Facts, rng: random.Random) -> str:
    start = rng.choice(("could you show me", "can I see", "would you mind drawing", "what would it look like to have"))
    return f"{start} {_plain(told, rng)}?"


def _typos(told: Facts, rng: random.Random) -> str:
    """A letter left out, doubled or swapped in one or two words."""
    words = _plain(told, rng).split()
    long = [i for i, word in enumerate(words) if len(word) > 3]
    for i in rng.sample(long, min(len(long), 2)):
        word, at = words[i], rng.randrange(1, len(words[i]) - 1)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        words[i] = rng.choice((word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:], swapped))
    return " ".join(words)


def _story(told: Facts, rng: random.Random) -> str:
    start = rng.choice(("once upon a time there was", "in this picture you can see", "the scene has"))
    ground = f", and behind it all {told.ground}" if told.ground else ""
    return f"{start} {subject(told, rng)}{ground}"


def _tags(told: Facts, rng: random.Random) -> str:
    return " ".join("#" + word.replace(" ", "").replace("'", "") for word in _keywords(told, rng).split(", "))


_WORDINGS = {
    "plain": _plain, "photo": _photo, "request": _request, "keywords": _keywords, "title": _title, "upper": _upper,
    "front": _front, "alt": _alt, "question": _question, "typos": _typos, "story": _story, "tags": _tags,
}  # fmt: skip
