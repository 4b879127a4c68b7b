"""Plots and sheets of the report: curves as SVG, pictures in rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np
import PIL.Image

from racm3.document import Image
from racm3.errors import ConfigError
from racm3.scenes.draw import SCENE_PX
from racm3.util.contact_sheet import Tile, sheet
from study.claims import Results, of_seeds, trained
from study.runs import SIZES

__all__ = ["draw_sheet", "plot_curves", "plot_shots", "plot_sizes"]

CURVES = {f"alpha {alpha}": f"alpha-{alpha}" for alpha in ("0", "0.1", "0.3", "1")} | {
    "alpha 0.1, no query dropout": "no-query-dropout",
    "alpha 0.3, no query dropout": "small",
}
"""The variants whose held-out loss is plotted."""

Line = tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float]]
"""Places, and the values there: the line's, and the lower and the upper edge of its band."""


def plot_curves(results: Results, file: Path) -> bool:
    """Held-out loss against training compute: the mean over seeds, and the seeds' range."""
    lines = {}
    for name, variant in CURVES.items():
        if found := trained(results, variant):
            compute = [step * found[0]["flops_per_step"] / 1e15 for step in found[0]["curve"]["step"]]
            lines[name] = _line(compute, zip(*(one["curve"]["loss"] for one in found), strict=True))
    return _plot(file, lines, "training compute, PFLOP", "held-out loss of the main document, nats")


def plot_sizes(results: Results, file: Path) -> bool:
    """Distance from true novel scenes against parameters, with and without retrieval."""
    lines = {}
    retrieval, vanilla = zip(*SIZES, strict=True)
    for name, documents, variants in (("retrieval", 2, retrieval), ("vanilla", 0, vanilla)):
        if done := [variant for variant in variants if trained(results, variant)]:
            sizes = [trained(results, one)[0]["parameters"] / 1e6 for one in done]
            asked = {"entities": "novel", "documents": documents}
            lines[name] = _line(sizes, [of_seeds(results, one, "fd", **asked) for one in done])
    return _plot(file, lines, "parameters, millions", "FD of novel scenes")


def plot_shots(results: Results, file: Path) -> bool:
    """Share right by the number of contexts, ours with intervals beside the paper's."""
    lines: dict[str, Line] = {}
    every = results["one-shot"]["rows"]
    for by, model in dict.fromkeys((row["by"], row["model"]) for row in every):
        rows = [row for row in every if (row["by"], row["model"]) == (by, model)]
        low, high = zip(*(row["interval"]["right"] for row in rows), strict=True)
        lines[f"{model}, by {by}"] = [row["contexts"] for row in rows], [row["right"] for row in rows], low, high
    for model, shares in (("retrieval", (0.78, 0.79, 0.86, 0.90)), ("vanilla", (0.53, 0.50, 0.56, 0.56))):
        lines[f"talk, {model}"] = (1, 2, 4, 8), shares, shares, shares
    return _plot(file, lines, "contexts", "share right")


def _line(places: Sequence[float], values: Iterable[Sequence[float]]) -> Line:
    """The mean of the values at each place, and their range."""
    by_place = list(values)
    return places, [mean(own) for own in by_place], [min(own) for own in by_place], [max(own) for own in by_place]


def _plot(file: Path, lines: Mapping[str, Line], x: str, y: str) -> bool:
    """Write the lines as SVG, the same bytes for the same numbers; whether there was any."""
    if not lines:
        return False
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError(
            f"the plots of the report need a package that is not installed; pip install 'racm3[report]' ({error})"
        ) from error
    matplotlib.use("svg")

    with matplotlib.rc_context({"svg.hashsalt": "racm3", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(5.5, 3.4))
        for name, (places, middle, low, high) in lines.items():
            style = "--" if name.startswith("talk") else "-"
            (drawn,) = axes.plot(places, middle, style, marker="o", markersize=3, label=name)
            axes.fill_between(places, low, high, alpha=0.2, color=drawn.get_color(), linewidth=0)
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        figure.savefig(file, metadata={"Date": None})
        pyplot.close(figure)
    return True


TILE_PX = 96


def draw_sheet(tiles: PIL.Image.Image, heads: Sequence[str], titles: Sequence[str]) -> PIL.Image.Image:
    """The tiles of a result, larger, with the heads above the columns and the titles above the rows."""
    pixels = np.asarray(tiles).reshape(len(titles), SCENE_PX, len(heads), SCENE_PX, 3).swapaxes(1, 2)
    rows = [[Tile(Image(one), head=head) for one, head in zip(row, heads, strict=True)] for row in pixels]
    return sheet(rows, TILE_PX, titles, enlarge=True)
