"""Claims: what the paper says the method does, and whether the study's results say so too.

Each is judged from numbers of the result files alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from study.runs import SEEDS, SIZES, steps_to_reach

__all__ = ["CLAIMS", "Claim", "of_seeds", "percent", "row_of", "share_of_steps", "trained"]

Row = Mapping[str, Any]
Results = Mapping[str, Any]
"""The study's result files by name."""


def row_of(rows: Iterable[Row], **labels: Any) -> Row:
    """The one row that has these labels."""
    (found,) = [row for row in rows if all(row.get(key) == value for key, value in labels.items())]
    return found


def trained(results: Results, variant: str) -> list[Any]:
    """The results of a variant's seeds, as far as there are any."""
    names = [f"{variant}-seed-{seed}" for seed in SEEDS]
    return [results[name] for name in names if name in results]


def of_seeds(results: Results, variant: str, score: str, **labels: Any) -> list[float]:
    """A score of one row of a variant's results, seed by seed."""
    return [float(row_of(result["rows"], **labels)[score]) for result in trained(results, variant)]


def share_of_steps(results: Results, variant: str) -> list[float]:
    """Seed by seed: after which share of alpha 0's steps a variant has the held-out loss with which alpha 0 ends; inf
    if it never has. Seeds that either lacks are left out."""
    shares = []
    for seed in SEEDS:
        names = f"alpha-0-seed-{seed}", f"{variant}-seed-{seed}"
        if all(name in results for name in names):
            without, own = (results[name]["curve"] for name in names)
            step = steps_to_reach(own["step"], own["loss"], without["loss"][-1])
            shares.append(math.inf if step is None else step / without["step"][-1])
    return shares


@dataclass(frozen=True)
class Claim:
    """A claim of the paper. ``judge`` gives what was found, in words with numbers, and whether it holds by ``target``;
    it raises LookupError where a result is missing. ``otherwise``: why it may fail here, and what would settle it."""

    claim: str
    talk: str
    target: str
    judge: Callable[[Results], tuple[str, bool]]
    otherwise: str


def percent(share: float) -> str:
    """A share as a person writes it; infinity is never."""
    return "never" if math.isinf(share) else f"{100 * share:.0f} %"


def _drawing(results: Results) -> tuple[str, bool]:
    rows = results["pictures"]["rows"]
    ours, vanilla, returned = (
        float(row_of(rows, entities="novel", model=model)["all_correct"])
        for model in ("retrieval", "vanilla", "returned")
    )
    holds = ours > 0 and ours >= 3 * vanilla and ours > returned
    return (
        f"{percent(ours)} of novel scenes all correct; vanilla {percent(vanilla)}, returned {percent(returned)}",
        holds,
    )


def _distance(results: Results) -> tuple[str, bool]:
    rows = results["pictures"]["rows"]
    ours, vanilla = (float(row_of(rows, entities="novel", model=model)["fd"]) for model in ("retrieval", "vanilla"))
    return (
        f"FD {vanilla:.2f} -> {ours:.2f} on novel scenes ({percent(1 - ours / vanilla)} lower)",
        ours <= 0.55 * vanilla,
    )


def _captions(results: Results) -> tuple[str, bool]:
    rows = results["captions"]["rows"]
    ours, vanilla = (row_of(rows, entities="novel", model=model) for model in ("retrieval", "vanilla"))
    named = f"named {percent(vanilla['entity_named'])} -> {percent(ours['entity_named'])}"
    words = f"CIDEr-D {vanilla['cider_d']:.2f} -> {ours['cider_d']:.2f} on novel scenes, entity {named}"
    return words, ours["cider_d"] >= 1.24 * vanilla["cider_d"]


def _one_shot(results: Results) -> tuple[str, bool]:
    shares = {(row["by"], row["model"]): float(row["right"]) for row in _shots(results) if row["contexts"] == 1}
    ours, vanilla = shares["picture", "retrieval"], shares["picture", "vanilla"]
    by_label = f"{shares['label', 'retrieval']:.2f}, vanilla {shares['label', 'vanilla']:.2f}"
    words = f"{ours:.2f}, vanilla {vanilla:.2f}; by the probability of the label, as in the paper, {by_label}"
    return words, ours >= 0.78 and abs(vanilla - 0.5) <= 0.05


def _ensembles(results: Results) -> tuple[str, bool]:
    picture, label = (
        [float(row["right"]) for row in _shots(results) if (row["by"], row["model"]) == (by, "retrieval")]
        for by in ("picture", "label")
    )
    said = [" ".join(f"{share:.2f}" for share in shares) for shares in (picture, label)]
    return f"{said[0]}; by the label {said[1]}", picture[-1] >= 0.90


def _shots(results: Results) -> list[Row]:
    return list(results["one-shot"]["rows"])


def _alpha_speed(results: Results) -> tuple[str, bool]:
    shares = share_of_steps(results, "alpha-0.1")
    if len(shares) < len(SEEDS):
        raise LookupError("alpha")
    said = ", ".join(map(percent, shares))
    return f"alpha 0's last held-out loss after {said} of its steps (a seed each)", mean(shares) <= 0.5


def _alpha_best(results: Results) -> tuple[str, bool]:
    found = {
        alpha: mean(result["curve"]["loss"][-1] for result in trained(results, f"alpha-{alpha}"))
        for alpha in ("0", "0.1", "0.3", "1")
        if trained(results, f"alpha-{alpha}")
    }
    if len(found) < 4:
        raise LookupError("alpha")
    said = ", ".join(f"alpha {alpha}: {loss:.3f}" for alpha, loss in found.items())
    return f"held-out loss of the main document, {said}", min(found, key=lambda alpha: found[alpha]) == "0.1"


def _without(results: Results) -> tuple[str, bool]:
    """CM3Leon dropped the weighting because 0.1 hurts where nothing is retrieved."""
    low, full = (of_seeds(results, f"alpha-{alpha}", "fd", entities="seen", documents=0) for alpha in ("0.1", "1"))
    if not (low and full):
        raise LookupError("alpha")
    return f"FD of seen scenes without documents: alpha 0.1 {mean(low):.2f}, alpha 1 {mean(full):.2f}", mean(
        full
    ) < mean(low)


def _more(results: Results) -> tuple[str, bool]:
    names = ("no document", "1 document", "2 documents")
    found = [float(row_of(results["documents"]["rows"], given=name)["fd"]) for name in names]
    return f"FD on novel scenes {' / '.join(f'{fd:.2f}' for fd in found)}", found[0] > found[1] > found[2]


def _diversity(results: Results) -> tuple[str, bool]:
    usual, no_skip, no_dropout = (
        of_seeds(results, variant, "fd", entities="novel", documents=2)
        for variant in ("alpha-0.1", "no-redundancy-skip", "no-query-dropout")
    )
    if not (usual and no_skip and no_dropout):
        raise LookupError("diversity")
    words = f"FD {mean(usual):.2f}; without skip {mean(no_skip):.2f}, without query dropout {mean(no_dropout):.2f}"
    return words, mean(usual) < min(mean(no_skip), mean(no_dropout))


def _whole(results: Results) -> tuple[str, bool]:
    rows = results["documents"]["rows"]
    names = ("2 documents", "2 documents, text alone", "2 documents, image alone")
    whole, text, image = (float(row_of(rows, given=name)["all_correct"]) for name in names)
    words = f"{percent(whole)} all correct; text alone {percent(text)}, image alone {percent(image)}"
    return words, whole > max(text, image)


def _knowledge(results: Results) -> tuple[str, bool]:
    rows = results["knowledge"]["rows"]
    before, after = (row_of(rows, entities="novel", **{"novel documents": when}) for when in ("before", "after"))
    words = f"novel scenes all correct {percent(before['all_correct'])} -> {percent(after['all_correct'])}"
    seconds = f"{after['in memory'] - before['in memory']} documents added in {after['added in s']:.1f} s"
    return f"{words}; {seconds}, no training", after["all_correct"] > max(2 * before["all_correct"], 0.1)


def _sizes(results: Results) -> tuple[str, bool]:
    said, gains = [], []
    for size, without in SIZES:
        ours = of_seeds(results, size, "fd", entities="novel", documents=2)
        theirs = of_seeds(results, without, "fd", entities="novel", documents=0)
        if not (ours and theirs):
            raise LookupError(size)
        millions = trained(results, size)[0]["parameters"] / 1e6
        gains.append(1 - mean(ours) / mean(theirs))
        seeds = f"{len(theirs)} and {len(ours)} seeds"
        said.append(f"{millions:.1f}M {mean(theirs):.1f} -> {mean(ours):.1f} ({seeds})")
    return f"FD of novel scenes, {', '.join(said)}", min(gains) >= 0.45


def _two(results: Results) -> tuple[str, bool]:
    rows = results["two-entities"]["rows"]
    names = ("retrieval", "given", "given small", "vanilla")
    ours, given, small, vanilla = (float(row_of(rows, model=name)["both"]) for name in names)
    by_hand = f"with a document of each given {percent(given)}, with a small one {percent(small)}"
    words = f"both drawn {percent(ours)}; {by_hand}; vanilla {percent(vanilla)}"
    return words, given >= max(0.5, 2 * vanilla)


def _style(results: Results) -> tuple[str, bool]:
    ours, vanilla = (row_of(results["tasks"]["rows"], task="style", model=m) for m in ("retrieval", "vanilla"))
    words = f"style met {percent(ours['style'])}, entity {percent(ours['entity'])}; vanilla {percent(vanilla['style'])}"
    return words, ours["style"] >= 0.5 and ours["style"] > vanilla["style"]


def _filling(results: Results) -> tuple[str, bool]:
    rows = results["tasks"]["rows"]
    found = {
        (task, model): row_of(rows, task=task, model=model, entities="novel")
        for task in ("infill", "edit")
        for model in ("retrieval", "vanilla")
    }
    said = ", ".join(
        f"{task} {percent(found[task, 'vanilla']['entity'])} -> {percent(found[task, 'retrieval']['entity'])}"
        for task in ("infill", "edit")
    )
    kept = min(row["untouched"] for row in found.values())
    holds = all(
        found[task, "retrieval"]["entity"] >= max(0.5, 2 * found[task, "vanilla"]["entity"])
        for task in ("infill", "edit")
    )
    return f"novel entity in the region, {said}; outside untouched {percent(kept)}", holds and kept == 1


CLAIMS = (
    Claim(
        "caption -> image, faithful to rare entities",
        "pictures",
        "all correct on novel entities at least 3 x vanilla and above the returned picture",
        _drawing,
        "The share can only be as high as the retriever's recall and the tokenizer's ceiling allow: compare with both.",
    ),
    Claim(
        "caption -> image",
        "FID 29 -> 16",
        "FD on novel entities at least 45 % below vanilla",
        _distance,
        "FD of 64 px scenes is mostly of backgrounds and styles, which vanilla knows; a generator judged on richer "
        "pictures would settle it.",
    ),
    Claim(
        "image -> caption",
        "CIDEr 0.72 -> 0.89",
        "CIDEr-D on novel entities at least 24 % above vanilla",
        _captions,
        "A novel name is copied piece by piece from the retrieved caption; with the true document given by hand, what "
        "is lost to retrieval and what to copying would be told apart.",
    ),
    Claim(
        "one-shot classification",
        "0.53 -> 0.78",
        "at least 0.78, vanilla within 0.05 of chance",
        _one_shot,
        "By the picture, vanilla is above chance: it reads the same examples, and repeats codes that stood before a "
        "little. A vanilla model that sees one document at a time would settle it. By the label, both are at chance: "
        "nothing in training asks which of two documents a picture belongs to (decision 0008).",
    ),
    Claim(
        "ensembles of 1 / 2 / 4 / 8 contexts",
        "0.78 0.79 0.86 0.90",
        "8 contexts at least 0.90",
        _ensembles,
        "Averages help only where each context is right more often than not and errors differ between contexts: the "
        "share right of single contexts, by their place, would tell.",
    ),
    Claim(
        "alpha = 0.1 halves training time",
        "50 %",
        "alpha 0's last main loss in at most half of the steps",
        _alpha_speed,
        "Half of our sequences with documents are renamed and have no loss on the retrieved part, and the world is "
        "small: the same runs without renaming, on more documents than are met once, would settle it.",
    ),
    Claim(
        "alpha = 0.1 is best",
        "0.1 of {0, 0.1, 0.3, 1}",
        "lowest held-out loss of the main document at 0.1",
        _alpha_best,
        "A retrieved document can be copied from the one before it, so its loss teaches copying too, and these runs "
        "end when copying has just begun: what brings it forward wins. Runs at 0.1 and 0.3 that go on until the loss "
        "is level would settle it.",
    ),
    Claim(
        "alpha = 1 is better where nothing is retrieved (CM3Leon)",
        "direction only",
        "lower FD without documents at alpha 1 than at 0.1",
        _without,
        "Words and pictures of main documents outnumber those of retrieved ones here, so that alpha changes little of "
        "what is learnt of them; longer runs at both alphas would settle it.",
    ),
    Claim(
        "0 / 1 / 2 documents (CM3Leon)",
        "FID 10.82 / 5.78 / 4.88",
        "FD falls with every document",
        _more,
        "One document already shows the entity; a second one of it adds nothing that can be copied.",
    ),
    Claim(
        "diversity of what is retrieved",
        "5 FID",
        "lowest FD with redundancy skip and query dropout",
        _diversity,
        "The memory of the world has few duplicates, so there is little to skip; a memory with each document three "
        "times over would settle it. A query here is a handful of words: without the entity's name among them it finds "
        "documents of something else, which teach less (counted in docs/log.md). Longer captions would settle it.",
    ),
    Claim(
        "multimodal documents beat text or image alone",
        "direction only",
        "more scenes all correct with whole documents",
        _whole,
        "The picture holds all codes that are to be copied; words only say which entity it shows.",
    ),
    Claim(
        "knowledge without retraining",
        "examples",
        "novel scenes drawn after their documents are added, and not before",
        _knowledge,
        "What is drawn after the change can only be as good as caption -> image with the whole memory.",
    ),
    Claim(
        "two entities in one picture",
        "pictures",
        "both drawn in at least half of the pictures and twice as often as vanilla, given a document of each",
        _two,
        "Entities are smaller there (32 px) than in most documents (40 px): other codes, which cannot be copied. With "
        "small ones given they could be, but training shows nothing of the kind: of its documents of two entities 1 % "
        "have both in what they retrieve (counted in docs/log.md). Training documents retrieved for each entity apart "
        "would settle it.",
    ),
    Claim(
        "in-context style",
        "pictures",
        "the demonstrated style, never met in training, in at least half of the pictures",
        _style,
        "A style changes every code of a picture, and training shows none to be taken over from a demonstration.",
    ),
    Claim(
        "infilling and editing with a controlling picture",
        "pictures",
        "novel entity in the region in at least half of the cases and twice as often as vanilla, outside untouched",
        _filling,
        "Nothing in training looks like an edit: the words are missing, and the given document contradicts the rest.",
    ),
    Claim(
        "generality of scale",
        "gain at every size",
        "FD on novel entities at least 45 % below vanilla at three sizes",
        _sizes,
        "What has not begun to copy after so few steps reads documents in vain, while vanilla sees twice as many main "
        "ones. A training of that size that goes on until it copies would settle it.",
    ),
)
