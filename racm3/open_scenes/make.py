"""From unpacked packages to the pictures that are shipped: cut-outs and backgrounds, each with its licence.

``packages`` is a folder in which each package lies unpacked under its own name:

    google    npm emoji-datasource-google   Noto Emoji, Apache License 2.0
    twitter   npm emoji-datasource-twitter  Twemoji, CC-BY 4.0
    fluent    npm @lobehub/fluent-emoji-3d  Fluent Emoji 3D, MIT
    openclipart-png, openclipart-svg        Debian, public domain
    lomiri-wallpapers-16.04, lomiri-wallpapers-20.04, ukui-wallpapers, gnome-backgrounds,
    plasma-workspace-wallpapers             Debian, CC0, CC-BY and CC-BY-SA: see ``backgrounds.json``

The names of the emoji are those of PyPI ``emoji``.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image

from racm3.open_scenes.names import clean, groups, is_novel

CUTOUT_PX = 96
"""Longest side of a cut-out that is kept: the largest that a scene shows."""
QUALITY = 80
MOST_PIXELS = 1 << 23
"""Larger pictures are maps and posters, and take seconds each."""
PER_NAME = 5
"""At most so many pictures of one name in one set: no name is to fill the world."""
BACKGROUND_PX = 288
"""Shorter side of a background that is kept: three times a picture, so that crops differ."""

NO_EMOJI = {
    ("Flags", None),  # flags are foreign: drawn by code, for evaluation
    ("Component", None),
    *(("Symbols", kind) for kind in "alphanum keycap geometric arrow av-symbol zodiac religion punctuation".split()),
    *(("Symbols", kind) for kind in ("math", "currency", "gender", "other-symbol")),
    ("People & Body", "family"),
}
NO_CLIPART = re.compile(
    r"/(computer|buttons|special|flags|led|stars|arrows|callouts|flowchart|jigsaw|cards|stickmen|aiga)/|aiga_|logo"
)


KYLIN = "Ubuntu Kylin community contributors"
LOMIRI, LOMIRI_20 = "lomiri-wallpapers-16.04/usr/share/backgrounds", "lomiri-wallpapers-20.04/usr/share/backgrounds"
UKUI, GNOME = "ukui-wallpapers/usr/share/backgrounds", "gnome-backgrounds/usr/share/backgrounds/gnome"
PLASMA = "plasma-workspace-wallpapers/usr/share/wallpapers"

BACKGROUNDS = (  # file, name, author, licence, split
    (
        f"{LOMIRI}/Bridge_by_Sander_Klootwijk.jpg",
        "a beach under a blue sky",
        "Sander Klootwijk",
        "CC-BY-SA-4.0",
        "seen",
    ),
    (f"{LOMIRI}/Dragonfly_by_Bolly.jpg", "green leaves", "Bolly", "CC-BY-SA-4.0", "seen"),
    (f"{LOMIRI}/Picture_1A_by_freespace.jpg", "paint brushes", 'Trevor "Freespace"', "CC-BY-4.0", "seen"),
    (f"{LOMIRI}/Wine_by_Jakkub_Mede.jpg", "a living room", "Jakub Mede", "CC-BY-4.0", "seen"),
    (f"{LOMIRI}/aitzgorri_by_Aitzol_Berasategi.jpg", "autumn hills", "Aitzol Berasategi", "CC-BY-4.0", "seen"),
    (f"{LOMIRI}/analogpattern_by_Peter_Nerlich.jpg", "a purple haze", "Peter Nerlich", "CC-BY-SA-4.0", "seen"),
    (f"{LOMIRI}/life_by_Aitzol_Berasategi.jpg", "a stream in the woods", "Aitzol Berasategi", "CC-BY-4.0", "seen"),
    (f"{LOMIRI}/picosdeeuropa_by_Aitzol_Berasategi.jpg", "rocky mountains", "Aitzol Berasategi", "CC-BY-4.0", "novel"),
    (f"{LOMIRI}/seeding_by_Clements_Engelhardt.jpg", "a field of dandelions", "Clemens Engelhardt", "CC0-1.0", "seen"),
    (f"{LOMIRI}/sunset_by_Aitzol_Berasategi.jpg", "a sunset", "Aitzol Berasategi", "CC-BY-4.0", "seen"),
    (f"{LOMIRI}/umang_by_Abhishek_Mudgal.jpg", "rainbow colours", "Abhishek Mudgal", "CC-BY-4.0", "seen"),
    (f"{LOMIRI_20}/Fossa_by_Jasper_Roks.jpg", "dark red folds", "Jasper Roks", "CC-BY-SA-3.0", "seen"),
    (f"{LOMIRI_20}/Infinite-Sea_by_Aury88.jpg", "the Milky Way", "Aury88", "CC-BY-SA-3.0", "seen"),
    (f"{LOMIRI_20}/Kleiber_by_Lukas_Baubkus.jpg", "a tree trunk", "Lukas Baubkus", "CC-BY-SA-3.0", "novel"),
    (
        f"{LOMIRI_20}/Painting-Colors_by__herobrine7gamer.jpg",
        "slanted stripes",
        "HEROBRINE7GAMER",
        "CC-BY-SA-3.0",
        "seen",
    ),
    (f"{UKUI}/2004default.jpg", "pink ribbons", KYLIN, "CC-BY-SA-3.0", "seen"),
    (f"{UKUI}/city.png", "blue blocks", KYLIN, "CC-BY-SA-3.0", "seen"),
    (f"{UKUI}/desert.png", "teal paper", KYLIN, "CC-BY-SA-3.0", "seen"),
    (f"{UKUI}/fluent-color.png", "lilac waves", KYLIN, "CC-BY-SA-3.0", "seen"),
    (f"{UKUI}/rhythm.jpg", "flowing silk", KYLIN, "CC-BY-SA-3.0", "novel"),
    (f"{UKUI}/rollpaper.png", "rolled paper", KYLIN, "CC-BY-SA-3.0", "seen"),
    (f"{UKUI}/string.jpg", "blue swirls", KYLIN, "CC-BY-SA-3.0", "seen"),
    (f"{GNOME}/adwaita-l.webp", "blue cubes", "Jakub Steiner", "CC-BY-SA-3.0", "seen"),
    (f"{GNOME}/adwaita-d.webp", "purple cubes", "Jakub Steiner", "CC-BY-SA-3.0", "seen"),
    (f"{PLASMA}/Altai/contents/images/5120x2880.png", "a mountain lake", "Alesya Khoteeva", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/IceCold/contents/images/5120x2880.png", "ice", "Santiago Cezar", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/Flow/contents/images/5120x2880.jpg", "orange hexagons", "Sandra Smukaste", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/Kay/contents/images/5120x2880.png", "turquoise stripes", "ruvkr", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/Patak/contents/images/5120x2880.png", "a paper boat pond", "Aron Kovacs", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/Volna/contents/images/5120x2880.jpg", "a sandy shore", "Nikita Babin", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/Honeywave/contents/images/5120x2880.jpg", "dripping honey", "Ken Vermette", "CC-BY-SA-4.0", "seen"),
    (f"{PLASMA}/Shell/contents/images/5120x2880.jpg", "a violet shell", "Lucas Andrade", "CC-BY-SA-4.0", "novel"),
    (f"{PLASMA}/MilkyWay/contents/images/5120x2880.png", "golden dust", "ruvkr", "CC-BY-SA-4.0", "seen"),
    (
        f"{PLASMA}/SafeLanding/contents/images/5120x2880.jpg",
        "a fairy-tale valley",
        "Louis Durrant",
        "CC-BY-SA-4.0",
        "seen",
    ),
)


@dataclass
class Cutout:
    """One picture to be kept."""

    set: str
    names: list[str]
    picture: PIL.Image.Image
    source: str
    author: str = ""
    keywords: list[str] = field(default_factory=list)
    group: str = ""  # of near twins, where the names do not tell


def cropped(picture: PIL.Image.Image, longest_px: int = CUTOUT_PX) -> PIL.Image.Image | None:
    """A cut-out without its empty border and not larger than ``longest_px``; None if it is none, or too small."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    scale = longest_px / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        pixels = np.asarray(picture.convert("RGBa").resize(size, PIL.Image.Resampling.LANCZOS))
        picture = PIL.Image.fromarray(pixels, "RGBa").convert("RGBA")
    return picture


def emoji(packages: Path) -> Iterator[Cutout]:
    """The emoji of three sets."""
    from emoji import EMOJI_DATA

    folders = {
        "noto": packages / "google/package/img/google/64",
        "twemoji": packages / "twitter/package/img/twitter/64",
        "fluent": packages / "fluent/package/assets",
    }
    for entry in json.loads((packages / "google/package/emoji.json").read_text()):
        kind, part = entry["category"], entry["subcategory"]
        characters = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        known = EMOJI_DATA.get(characters)
        if known is None or {(kind, None), (kind, part)} & NO_EMOJI:
            continue
        name = clean(known["en"].strip(":").replace("_", " "))
        joined = "200D" in entry["unified"]
        if "o'clock" in name or "thirty" in name or (joined and name.split()[0] in ("man", "woman", "men", "women")):
            continue
        if re.search(r"\b(o clock|couple|kiss|men|women|skin)\b", name):
            continue
        others = [clean(other.replace("_", " ").strip(":")) for other in known.get("alias", ())]
        others += [clean(other.replace("_", " ")) for other in entry["short_names"]]
        names = list(dict.fromkeys(n for n in [name, *others] if n and len(n.split()) <= 4))
        if not names:
            continue
        people = kind in ("Smileys & Emotion",) or "hand" in part
        for set_, folder in folders.items():
            code = entry["unified"].lower()
            for stem in (code, code.replace("-fe0f", "")):
                file = folder / f"{stem}.{'webp' if set_ == 'fluent' else 'png'}"
                if file.exists():
                    picture = cropped(PIL.Image.open(file))
                    if picture is not None:
                        yield Cutout(set_, names, picture, stem, group=f"{part} group" if people else "")
                    break


def clipart(packages: Path) -> Iterator[Cutout]:
    """The coloured cut-outs of Open Clip Art."""
    pictures = packages / "openclipart-png/usr/share/openclipart/png"
    drawings = packages / "openclipart-svg/usr/share/openclipart/svg"
    facts = {
        file: _facts(drawings / file.relative_to(pictures).with_suffix(".svg")) for file in _clipart_files(pictures)
    }
    often = Counter(title for title, *_ in facts.values())
    seen: list[np.ndarray] = []
    for file, (title, author, keywords, free) in facts.items():
        name = clean(title) if often[title] <= 4 and "clipart" not in title.lower() else _from_stem(file.stem, author)
        name = " ".join(word for word in name.split() if word not in ("clipart", "svg", "icon", "the", "a", "simple"))
        if not free or not 1 <= len(name.split()) <= 4 or not 3 <= len(name) <= 28:
            continue
        picture = cropped(PIL.Image.open(file)) if _pixels(file) <= MOST_PIXELS else None
        if picture is None or not _is_colourful_cutout(picture):
            continue
        small = np.asarray(picture.convert("RGBa").resize((12, 12))).astype(np.int16)
        if any(np.abs(small - other).mean() < 5 for other in seen):
            continue
        seen.append(small)
        source = str(file.relative_to(pictures).with_suffix(""))
        keywords = [word for word in map(clean, keywords) if word and len(word.split()) <= 2]
        yield Cutout("openclipart", [name], picture, source, author, keywords)


def _pixels(file: Path) -> int:
    """Of a PNG, as its header says."""
    width, height = struct.unpack(">II", file.read_bytes()[16:24])
    return int(width * height)


def _clipart_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*.png")) if not NO_CLIPART.search(str(file).lower())]


def _facts(file: Path) -> tuple[str, str, list[str], bool]:
    """Title, author, keywords, and whether the drawing is whole and says that it is in the public domain."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", "", [], False
    title = re.search(r"<dc:title>([^<]*)", text)
    author = re.search(r"<dc:creator>.*?<dc:title>([^<]*)", text, re.DOTALL)
    keywords = re.findall(r"<rdf:li>([^<]*)", text)
    found = [match.group(1).strip() if match else "" for match in (title, author)]
    linked = "<image" in text and "base64" not in text  # a picture that is not there
    return found[0], found[1], keywords, "publicdomain" in text.lower() and not linked


def _from_stem(stem: str, author: str) -> str:
    """A name from a file's: without numbers, and without the beginnings of the author's names."""
    of_author = re.findall(r"[a-z]+", author.lower())
    words = [word for word in clean(stem).split() if not any(name.startswith(word) for name in of_author)]
    return " ".join(word for word in words if len(word) > 1)


def _is_colourful_cutout(picture: PIL.Image.Image) -> bool:
    pixels = np.asarray(picture).astype(np.int16)
    inside = pixels[..., 3] > 128
    if max(picture.size) < 48 or not 0.33 <= picture.width / picture.height <= 3 or not 0.15 < inside.mean() < 0.98:
        return False
    colours = pixels[..., :3][inside]
    saturation = colours.max(1) - colours.min(1)
    return bool((saturation > 40).mean() > 0.06 and colours.std(0).max() > 16)


def write_art(cutouts: Iterator[Cutout], out: Path) -> None:
    """Write a zip of WebP files for each set, and ``art.json``: concepts with names, group, split and pictures."""
    by_name: dict[str, list[Cutout]] = defaultdict(list)
    for cutout in cutouts:
        same = [one for one in by_name[cutout.names[0]] if one.set == cutout.set]
        if len(same) < (PER_NAME if cutout.set == "openclipart" else 1):
            by_name[cutout.names[0]].append(cutout)
    concepts = sorted(by_name)
    all_names = {name: list(dict.fromkeys(n for one in by_name[name] for n in one.names)) for name in concepts}
    keys = [[*all_names[name], *(one.group for one in by_name[name] if one.group)] for name in concepts]
    rows = []
    zips = {}
    for concept, group in zip(concepts, groups(keys), strict=True):
        pictures = []
        for number, one in enumerate(by_name[concept]):
            if one.set not in zips:
                zips[one.set] = zipfile.ZipFile(out / f"{one.set}.zip", "w", zipfile.ZIP_STORED)
            data = io.BytesIO()
            one.picture.save(data, "webp", quality=QUALITY, alpha_quality=80, method=6)
            file = f"{concept.replace(' ', '-')}-{number}.webp" if number else f"{concept.replace(' ', '-')}.webp"
            entry = zipfile.ZipInfo(file, (2026, 1, 1, 0, 0, 0))
            zips[one.set].writestr(entry, data.getvalue())
            pictures.append(
                {"set": one.set, "file": file, "source": one.source} | ({"author": one.author} if one.author else {})
            )
        keywords = list(dict.fromkeys(word for one in by_name[concept] for word in one.keywords))[:6]
        row = {"name": concept, "also": all_names[concept][1:], "keywords": keywords, "group": group}
        rows.append(row | {"split": "novel" if is_novel(group) else "seen", "pictures": pictures})
    for archive in zips.values():
        archive.close()
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (out / "art.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def write_backgrounds(packages: Path, out: Path) -> None:
    """Write ``backgrounds.zip`` and ``backgrounds.json``: name, author, licence and split of each."""
    rows = []
    with zipfile.ZipFile(out / "backgrounds.zip", "w", zipfile.ZIP_STORED) as archive:
        for source, name, author, licence, split in BACKGROUNDS:
            opened = PIL.Image.open(packages / source)
            opened.draft("RGB", (4 * BACKGROUND_PX, 4 * BACKGROUND_PX))
            picture = opened.convert("RGB")
            scale = BACKGROUND_PX / min(picture.size)
            size = round(picture.width * scale), round(picture.height * scale)
            data = io.BytesIO()
            picture.resize(size, PIL.Image.Resampling.BOX).save(data, "webp", quality=QUALITY, method=6)
            file = f"{name.replace(' ', '-')}.webp"
            archive.writestr(zipfile.ZipInfo(file, (2026, 1, 1, 0, 0, 0)), data.getvalue())
            row = {"name": name, "file": file, "split": split, "author": author, "licence": licence, "source": source}
            rows.append(row)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (out / "backgrounds.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def make(packages: Path, out: Path) -> None:
    """Make all of the world's pictures anew."""
    out.mkdir(parents=True, exist_ok=True)
    write_art(chain(emoji(packages), clipart(packages)), out)
    write_backgrounds(packages, out)
