"""The caption of a scene, and the scene of a caption: ``read(describe(scene)) == scene``."""

from __future__ import annotations

from functools import lru_cache

from racm3.scenes.draw import COLOURS, POSITIONS, STYLES, Scene
from racm3.scenes.glyphs import load_glyphs

FORMS = 3
"""Ways to say the same; ``describe`` takes one of 0, 1, 2."""

BACKGROUND_PHRASES = {name: f"on a {name} background" for name in COLOURS} | {
    "night sky": "in the night sky",
    "beach": "on a beach",
    "meadow": "in a meadow",
    "snow": "in the snow",
    "desert": "in the desert",
    "sea": "on the sea",
    "forest": "in a forest",
    "sunset": "at sunset",
}
POSITION_PHRASES = {
    name: f"on the {name}" if name in ("left", "right") else f"at the {name}" for name in POSITIONS if name != "centre"
}
STYLE_PHRASES = {
    "plain": "",
    "grayscale": "a black and white picture of ",
    "sketch": "a pencil sketch of ",
    "mosaic": "a mosaic of ",
    "negative": "a negative of ",
    "sepia": "a sepia picture of ",
}
NUMBERS = {2: "two", 3: "three"}


def describe(scene: Scene, form: int = 0) -> str:
    """A caption that states every fact of the scene; the centre goes without saying."""
    subject = name_subject(scene)
    place = BACKGROUND_PHRASES[scene.background]
    position = POSITION_PHRASES.get(scene.position, "")
    if not position:
        return f"{subject} {place}"
    forms = f"{subject} {position} {place}", f"{subject} {place}, {position}", f"{position}, {subject} {place}"
    return forms[form % FORMS]


def name_subject(scene: Scene) -> str:
    """A caption that says what stands there, and neither where nor on what."""
    if len(scene.entities) == 2:
        subject = f"{with_article(scene.entities[0])} and {with_article(scene.entities[1])}"
    elif scene.count > 1:
        subject = f"{NUMBERS[scene.count]} {plural(scene.entities[0])}"
    else:
        subject = with_article(scene.entities[0], "tiny " if scene.size == "small" else "")
    return STYLE_PHRASES[scene.style] + subject


def read_place(caption: str) -> tuple[str, str | None, str]:
    """What a caption shows, in words, then on which background (None if it says none) and in which position."""
    rest = caption.strip()
    position = "centre"  # has no words
    for name, phrase in POSITION_PHRASES.items():
        if rest.startswith(f"{phrase}, "):
            position, rest = name, rest[len(phrase) + 2 :]
        elif rest.endswith(f", {phrase}"):
            position, rest = name, rest[: -len(phrase) - 2]
    background = next((name for name, phrase in BACKGROUND_PHRASES.items() if rest.endswith(f" {phrase}")), None)
    if background is not None:
        rest = rest[: -len(BACKGROUND_PHRASES[background]) - 1]
    for name, phrase in POSITION_PHRASES.items():
        if rest.endswith(f" {phrase}"):
            position, rest = name, rest[: -len(phrase) - 1]
    return rest, background, position


def read(caption: str) -> Scene | None:
    """The scene that a caption describes, or None if it is not one of ours."""
    rest, background, position = read_place(caption)
    if background is None:
        return None
    style = next((s for s in STYLES if STYLE_PHRASES[s] and rest.startswith(STYLE_PHRASES[s])), "plain")
    subject = _subjects().get(rest[len(STYLE_PHRASES[style]) :])
    if subject is None:
        entities = _two_entities(rest[len(STYLE_PHRASES[style]) :])
        subject = (entities, 1, "normal") if entities else None
    if subject is None:
        return None
    names, count, size = subject
    if position != "centre" and (count > 1 or len(names) > 1):
        return None
    return Scene(names, background, position, count, size, style)


def with_article(name: str, adjective: str = "") -> str:
    """``a fox``, ``an owl``, ``some grapes``."""
    last = name.split(" with ")[0].split(" of ")[0].split(" ")[-1]
    if last.endswith("s") and not last.endswith(("ss", "us", "is")):
        article = "some"
    else:
        article = "an" if (adjective or name)[0] in "aeiouAEIO" else "a"
    return f"{article} {adjective}{name}"


def plural(name: str) -> str:
    """``foxes``, ``balls of yarn``; the head noun stands before the first of / with / without / in / on."""
    words = name.split(" ")
    head = next((i for i, word in enumerate(words) if word in ("of", "with", "without", "in", "on")), len(words)) - 1
    word = words[max(head, 0)]
    if word.endswith(("s", "x", "ch", "sh", "z")):
        ending = word + "es"
    elif word.endswith("y") and word[-2:-1] not in "aeiou":
        ending = word[:-1] + "ies"
    else:
        ending = word + "s"
    words[max(head, 0)] = ending
    return " ".join(words)


@lru_cache(maxsize=1)
def _subjects() -> dict[str, tuple[tuple[str, ...], int, str]]:
    table: dict[str, tuple[tuple[str, ...], int, str]] = {}
    for name in load_glyphs().names:
        table[with_article(name)] = ((name,), 1, "normal")
        table[with_article(name, "tiny ")] = ((name,), 1, "small")
        for count, word in NUMBERS.items():
            table[f"{word} {plural(name)}"] = ((name,), count, "normal")
    return table


def _two_entities(subject: str) -> tuple[str, ...] | None:
    pieces = subject.split(" and ")
    for cut in range(1, len(pieces)):
        first = _subjects().get(" and ".join(pieces[:cut]))
        second = _subjects().get(" and ".join(pieces[cut:]))
        if first and second and first[1] == second[1] == 1 and first[2] == second[2] == "normal":
            return first[0] + second[0]
    return None
