"""Report: docs/results.md, its plots and its sheets, made of the study's result files alone.

Every number comes out of a file, every verdict out of numbers; what stands here as prose says what was done, what the
talk claims, and why a claim may fail at this size. A name of the study without a result file is shown as "not run".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import PIL.Image

from racm3.errors import InputError
from racm3.evaluation.protocol import check_comparable
from study.claims import CLAIMS, Results, Row, of_seeds, percent, share_of_steps, trained
from study.plots import draw_sheet, plot_curves, plot_shots, plot_sizes
from study.runs import NAMES, SEEDS, TRAININGS, VARIANTS

__all__ = ["load_results", "write_report"]

RATES = frozenset(
    ("entity", "background", "position", "all_correct", "entity_named", "background_told", "position_told")
) | {"each", "both", "right", "style", "untouched", "recall at 1", "recall at 2"}
"""Scores that are shares, shown in per cent."""
HEADS = {
    "entity": "entity %",
    "background": "background %",
    "position": "position %",
    "all_correct": "all correct %",
    "clip_score": "CLIPScore",
    "fd": "FD",
    "entity_named": "entity named %",
    "background_told": "background told %",
    "position_told": "position told %",
    "cider_d": "CIDEr-D",
    "text": "text tokens",
    "image": "image tokens",
    "right": "right %",
}
NOT_RUN = "not run"


# Reading -----------------------------------------------------------------------------------------------------------


def load_results(folder: Path) -> dict[str, Any]:
    """The results of the study by name, as far as there are any.

    Raises InputError if there is no such folder, for a file in it that is none of the study's, and unless all trainings
    were examined alike, so that they can stand in one table.
    """
    if not folder.is_dir():
        raise InputError(f"there are no results in {folder}; run this in a checkout of racm3, or add --rerun")
    results: dict[str, Any] = {}
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        name = str(result.get("name")) if ":" in str(result.get("name")) else file.stem  # of another package's
        if file.stem != name.replace(":", ".") or (name == file.stem and name not in NAMES):
            raise InputError(f"{file} is no result of the study; it has {', '.join(NAMES)}: move the file away")
        results[name] = result
    trained = [name for name in TRAININGS if name in results]
    for name in trained[1:]:
        check_comparable(results[trained[0]]["protocol"], results[name]["protocol"], (trained[0], name))
    return {name: results[name] for name in (*NAMES, *results) if name in results}


def claims_table(results: Results) -> list[str]:
    lines, failed = _lines(["claim", "talk", "here", "holds if", "holds"]), list[str]()
    for claim in CLAIMS:
        try:
            found, holds = claim.judge(results)
        except LookupError:
            found, verdict = NOT_RUN, NOT_RUN
        else:
            verdict = "yes" if holds else "**no**"
            failed += [] if holds else [f"- **{claim.claim}**: {claim.otherwise}"]
        lines.append(_line([claim.claim, claim.talk, found, claim.target, verdict]))
    if failed:
        lines += ["", "Where a claim does not hold here, the likeliest reason, and what would settle it:", "", *failed]
    return lines


# Tables ------------------------------------------------------------------------------------------------------------


def cell(score: str, value: float, ends: Sequence[float] | None = None) -> str:
    """A score with its interval: ``83 (78 to 88)`` for a share, in per cent."""
    scale, digits = (100, 0) if score in RATES else (1, 2)
    said = f"{scale * value:.{digits}f}"
    if ends is None or ends[0] == ends[1]:
        return said
    return f"{said} ({scale * ends[0]:.{digits}f} to {scale * ends[1]:.{digits}f})"


def head(score: str) -> str:
    return HEADS.get(score, f"{score} %" if score in RATES else score)


def table(rows: Sequence[Row], leave_out: Iterable[str] = ("clip_score",)) -> list[str]:
    """Rows as Markdown: their labels, then their scores with intervals."""
    scores = [
        score for score in dict.fromkeys(key for row in rows for key in row["interval"]) if score not in leave_out
    ]
    labels = [key for key in rows[0] if key not in ("n", "interval", *rows[0]["interval"])]
    lines = _lines([*labels, *(head(score) for score in scores), "n"])
    for row in rows:
        shown = [cell(score, row[score], row["interval"][score]) if score in row else "" for score in scores]
        lines.append(_line([*(str(row[label]) for label in labels), *shown, str(row["n"])]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _lines(heads: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [_line(heads), "|" + "---|" * len(heads)]


COLUMNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("novel, all correct %", "all_correct", {"entities": "novel", "documents": 2}),
    ("novel, FD", "fd", {"entities": "novel", "documents": 2}),
    ("novel, CIDEr-D", "cider_d", {"entities": "novel", "documents": 2}),
    ("seen, all correct %", "all_correct", {"entities": "seen", "documents": 2}),
    ("seen, FD", "fd", {"entities": "seen", "documents": 2}),
    ("no documents: seen, all correct %", "all_correct", {"entities": "seen", "documents": 0}),
    ("no documents: seen, FD", "fd", {"entities": "seen", "documents": 0}),
    ("no documents: novel, FD", "fd", {"entities": "novel", "documents": 0}),
)


def of_all_seeds(score: str, values: Sequence[float]) -> str:
    """The mean over seeds, and the smallest and largest of them."""
    if not values:
        return ""
    return cell(score, mean(values), (min(values), max(values)))


def trainings_table(results: Results) -> list[str]:
    heads = ["variant", "seeds", "parameters", "minutes", "held-out loss", "steps to alpha 0's loss"]
    heads += [head for head, *_ in COLUMNS]
    lines = _lines(heads)
    for variant in VARIANTS:
        found = trained(results, variant)
        if not found:
            lines.append(_line([variant, NOT_RUN, *[""] * (len(heads) - 2)]))
            continue
        losses = [result["curve"]["loss"][-1] for result in found]
        cells = [variant, str(len(found)), f"{found[0]['parameters'] / 1e6:.1f}M"]
        cells += [f"{mean(result['train_s'] for result in found) / 60:.0f}", of_all_seeds("loss", losses)]
        comparable = variant.startswith("alpha-") and variant != "alpha-0"
        cells.append(", ".join(map(percent, share_of_steps(results, variant))) if comparable else "")
        for _, score, labels in COLUMNS:
            own = found[0]["settings"]["retrieved_shares"]
            asked = labels if len(own) > 1 or not labels["documents"] else None
            cells.append(of_all_seeds(score, of_seeds(results, variant, score, **asked)) if asked else "")
        lines.append(_line(cells))
    return lines


# Page --------------------------------------------------------------------------------------------------------------

SECTIONS = (
    (
        "pictures",
        "Caption -> image",
        "*retrieval*: the generator with two retrieved documents. *vanilla*: same size and compute, without. "
        "*returned*: the best retrieved picture itself. *ceiling*: the true picture through the image tokenizer. "
        "*judge*: the true picture, so the judge's own accuracy. FD: Frechet distance of the encoder's unit vectors to "
        "those of the true pictures, x 100. Of several drawings the best by the encoder's score is kept.",
    ),
    (
        "captions",
        "Image -> caption",
        "*returned*: the caption of the best retrieved document itself. Vanilla's second run practises fewer captions; "
        "with as many it captions seen entities better than retrieval does, novel ones no better (docs/log.md).",
    ),
    (
        "one-shot",
        "One-shot classification, and averages of several contexts",
        'Two novel entities named "animal X" and "animal Y", one example of each a context; the predictions of '
        "several contexts are averaged. *picture*: which example makes the third picture more probable behind its "
        "label; *label*, as in the paper: which label is more probable before the third picture. Chance is 50 %.",
    ),
    (
        "two-entities",
        "Two entities in one picture",
        "One drawing a request. *given*: a document of each entity by hand instead of the memory; *given small*: with "
        "the entity twice, as small as it is to be drawn. Each entity is cut out and judged alone; *true* says how "
        "well the judge does that.",
    ),
    (
        "tasks",
        "Infilling, editing, style",
        "*infill*: the entity is hidden, the caption given. *edit*: no words, but another entity's picture as control. "
        "*style*: sepia, never met in training, after two demonstrations. On the sheet, *given* is the picture with "
        "its hidden region in grey, or the first demonstration.",
    ),
    (
        "knowledge",
        "Knowledge without retraining",
        "The memory first holds seen entities alone; then the documents of novel ones are added, while it is open. The "
        "weights stay as they are.",
    ),
    (
        "documents",
        "What is retrieved, for pictures",
        "Novel entities, one drawing a request. A single part of a document is found by the vector of the whole.",
    ),
    ("caption-documents", "What is retrieved, for captions", "Novel entities."),
    (
        "context-aware",
        "Context-aware decoding",
        "How much more than usual the retrieved documents count: the logits are moved by so many times the distance "
        "from those of the main document alone (context-aware decoding). 1 is the generator by itself, as trainings "
        "are examined; elsewhere it is what `Protocol` says. One drawing a request; *style* as above.",
    ),
    ("retriever", "The retriever", "Whether the entity of the query is among the first one or two documents."),
    ("perplexity", "Perplexity", "Of test documents read causally, behind as many documents as their words retrieve."),
)
"""(experiment, title, what its rows are)."""

NOTE = (
    "The generators never saw the novel entities, neither as main nor as retrieved document; image tokenizer, encoder "
    "and judge, which count as pretrained, saw all drawings. In brackets: the 95 % interval of a bootstrap over the "
    "requests; in tables of trainings the smallest and largest of the seeds. A share of 0 or 100 % of n requests has "
    "no such interval: with 95 % certainty it is within 300 / n points. Sheets show the first pictures of the seeded "
    "test splits, whatever became of them."
)


def write_report(docs: Path) -> Path:
    """Write ``docs``/results.md, plots and sheets from ``docs``/results/study; returns the page.

    Raises InputError for a result that is none of the study's or was not measured like the others.
    """
    folder = docs / "results"
    results = load_results(folder / "study")
    page = [
        "# Results",
        "",
        "Written by `python -m study` from the files in `results/study`; nothing here is typed by hand.",
        "",
        NOTE,
        "",
    ]
    page += ["## The paper's claims", "", *claims_table(results), ""]
    foreign = [(name, name, result["about"]) for name, result in results.items() if name not in NAMES]
    for name, title, about in (*SECTIONS, *foreign):
        page += [f"## {title}", "", about, ""]
        if name not in results:
            page += [f"{NOT_RUN}: `python -m study --rerun --only {name}`", ""]
            continue
        result = results[name]
        page += [*table(result["rows"]), ""]
        if name == "one-shot" and plot_shots(results, folder / "one-shot.svg"):
            page += ["![Share right by the number of contexts](results/one-shot.svg)", ""]
        if sheet := result.get("sheet"):
            file = f"{name.replace(':', '.')}.webp"
            tiles = PIL.Image.open(folder / "study" / file).convert("RGB")
            draw_sheet(tiles, sheet["heads"], sheet["titles"]).save(folder / file, quality=90)
            page += [f"![{title}, the first of the seeded draw](results/{file})", ""]
        page += [_source(name, result["protocol"]), ""]
    page += ["## Trainings", "", *_about_trainings(), "", *trainings_table(results), ""]
    for plot, file, about in (
        (plot_curves, "alpha.svg", "Held-out loss against compute"),
        (plot_sizes, "sizes.svg", "FD of novel scenes by size"),
    ):
        if plot(results, folder / file):
            page += [f"![{about}](results/{file})", ""]
    missing = [name for name in TRAININGS if name not in results]
    if missing:
        page += [f"Not run yet: {', '.join(f'`{name}`' for name in missing)}.", ""]
    minutes = sum(result["protocol"]["elapsed_s"] for result in results.values()) / 60
    page += [f"All results together took {minutes:.0f} minutes."]
    path = docs / "results.md"
    path.write_text("\n".join(page) + "\n", encoding="utf-8")
    return path


def _about_trainings() -> list[str]:
    """What all trainings have in common, then what a variant is, a line each."""
    first = next(iter(VARIANTS.values()))
    steps, seeds = f"{first.run(0).loop.steps:,}", ", ".join(map(str, SEEDS))
    lines = [
        f"Each variant is trained from nothing on the same prepared data, for {steps} steps, in the seeds {seeds}, and "
        "examined with one drawing a request. The held-out loss is of the main documents alone, behind two retrieved "
        "ones, and for vanilla behind none. *Steps to alpha 0's loss*: after which share of its steps a seed has the "
        "held-out loss with which the same seed ends at alpha 0. Held-out documents are looked up as those of the "
        "training are, so a part of what query dropout costs there is what it makes harder to find; pictures and "
        "captions are judged behind the same documents for all.",
        "",
    ]
    for name, variant in VARIANTS.items():
        own = [f"preset `{variant.preset}`", *(f"`{one}`" for one in variant.set)]
        own += [] if variant.skip else ["redundant documents kept in training and afterwards"]
        lines.append(f"- *{name}*: {', '.join(own)}")
    return lines


def _source(name: str, protocol: Mapping[str, Any]) -> str:
    minutes, commit = protocol["elapsed_s"] / 60, protocol["commit"]
    return (
        f"From `results/study/{name}.json`: {protocol['n']} requests a split, commit {commit}, {minutes:.1f} minutes."
    )
