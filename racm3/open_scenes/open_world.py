"""The open world: scenes drawn at random, from what is seen or from what is novel.

Everything is a function of a numpy generator, so that a seed tells the scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from racm3.open_scenes.art import Art, Cutout, Split, load_art
from racm3.open_scenes.grounds import COLOURS, PAINTERS, Ground, all_grounds
from racm3.open_scenes.scene import PICTURE_PX, Placed, Scene

OVERHANG = 0.12
"""Share of its size by which an entity may stand beyond the edge of the picture."""

PLAIN_SHARE, PAINTED_SHARE = 0.25, 0.35
"""Of the backgrounds; the others are photographs and wallpapers."""

MIRRORED_SHARE, TINTED_SHARE = 0.2, 0.12
ONE_PX, TWO_PX, MORE_PX = (30, 66), (26, 46), (22, 36)
"""Smallest and largest entity where there are one, two or more of them."""


@dataclass(frozen=True)
class World:
    """Scenes of the cut-outs of ``art`` on the backgrounds of a split."""

    art: Art
    grounds: tuple[str, ...]

    @classmethod
    def of(cls, split: Split, grounds: str | None = None) -> World:
        """The world that is seen in training, or the novel one; its backgrounds may be of another split."""
        return cls(load_art().of(split), all_grounds(grounds or ("seen" if split == "seen" else "novel")))

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.art.by_name)

    @cached_property
    def _kinds(self) -> tuple[tuple[str, ...], ...]:
        plain = tuple(name for name in self.grounds if name in COLOURS)
        painted = tuple(name for name in self.grounds if name in PAINTERS)
        return plain, painted, tuple(name for name in self.grounds if name not in COLOURS and name not in PAINTERS)

    def cutout(self, rng: np.random.Generator) -> Cutout:
        """A cut-out: each concept is as likely as any other, and so is each of its pictures."""
        some = self.art.by_name[self.names[rng.integers(len(self.names))]]
        return some[rng.integers(len(some))]

    def others(self, count: int, rng: np.random.Generator) -> list[Cutout]:
        """As many cut-outs of different groups, so that none is the near twin of another."""
        found: dict[str, Cutout] = {}
        while len(found) < count:
            one = self.cutout(rng)
            found.setdefault(one.group or one.name, one)
        return list(found.values())

    def ground(self, rng: np.random.Generator) -> Ground:
        """A background, drawn by chance."""
        dice = rng.random()
        kind = 0 if dice < PLAIN_SHARE else 1 if dice < PLAIN_SHARE + PAINTED_SHARE else 2
        names = self._kinds[kind] or self.grounds
        return Ground(names[rng.integers(len(names))], int(rng.integers(2**31)))

    def placed(
        self,
        cutout: Cutout,
        rng: np.random.Generator,
        *,
        size: int | None = None,
        middle: tuple[float, float] | None = None,
        phase: tuple[int, int] | None = None,
        step: int = 1,
        mirrored: bool | None = None,
        tint: str | None = None,
    ) -> Placed:
        """A cut-out somewhere in the picture, its middle near ``middle`` if that is given.

        ``phase``: its upper left corner is then congruent to that one modulo ``step``.
        """
        size = size or int(rng.integers(ONE_PX[0], ONE_PX[1] + 1))
        mirrored = bool(rng.random() < MIRRORED_SHARE) if mirrored is None else mirrored
        if tint is None:
            tint = ("warm", "cold", "dark")[rng.integers(3)] if rng.random() < TINTED_SHARE else ""
        height, width = cutout.rgba(size, mirrored).shape[:2]
        corner = []
        for axis, side in enumerate((width, height)):
            low, high = -OVERHANG * size, PICTURE_PX - side + OVERHANG * size
            wished = rng.uniform(low, high) if middle is None else middle[axis] - side / 2
            place = int(np.clip(round(wished), np.ceil(low), np.floor(high)))
            if phase is not None:
                place += (phase[axis] - place + step // 2) % step - step // 2
            corner.append(place)
        return Placed(cutout.id, corner[0], corner[1], size, mirrored, tint)

    def middles(self, count: int, rng: np.random.Generator, jitter_px: float = 4.0) -> list[tuple[float, float]]:
        """Where the middles of as many entities may be, so that they mostly do not cover one another: about in the
        middle of a third of the picture each."""
        third = PICTURE_PX / 3
        if count == 1:
            cells = [(int(rng.integers(3)), int(rng.integers(3)))]
        elif count == 2:
            dice, lane = rng.random(), int(rng.integers(3))
            cells = [(0, lane), (2, lane)] if dice < 0.6 else [(lane, 0), (lane, 2)] if dice < 0.75 else []
            cells = cells or ([(0, 0), (2, 2)] if dice < 0.88 else [(0, 2), (2, 0)])
        else:
            cells = [(0, 0), (2, 0), (0, 2), (2, 2)][:count]
        order = rng.permutation(len(cells))
        return [tuple((np.array(cells[i]) + 0.5) * third + jitter_px * rng.normal(0, 1, 2)) for i in order]

    def scene(self, rng: np.random.Generator, count: int | None = None) -> Scene:
        """A picture of one to four entities."""
        count = count or int(rng.choice(4, p=(0.6, 0.26, 0.09, 0.05))) + 1
        low, high = (ONE_PX, TWO_PX, MORE_PX, MORE_PX)[count - 1]
        placed = [
            self.placed(one, rng, size=int(rng.integers(low, high + 1)), middle=middle)
            for one, middle in zip(self.others(count, rng), self.middles(count, rng), strict=True)
        ]
        return Scene(self.ground(rng), tuple(placed))
