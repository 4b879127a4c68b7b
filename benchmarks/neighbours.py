"""Are copies of a document kept out of its context in training? A corpus of which 30 % are planted copies.

Documents of Emoji Scenes; each copy is exact, saved as JPEG, resized or brightened. `duplicates_in_context` counts the
queries (text part and picture part of every document) that were given a copy of their own document, before and after
copies are told by whole against whole. The last line is JSON. The speed is that of benchmarks/neighbour_search.py.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from racm3.document import Document
from racm3.model_folder import ModelFolder
from racm3.retriever.choosing import strategy_for
from racm3.retriever.corpus_neighbours import document_neighbours, draw_queries
from racm3.scenes.world import World
from racm3.training.encoder_recipe import copies

K, SHARE = 2, 0.3


def main() -> None:
    """Plant, find, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=2000, help="without the copies")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, encoder = np.random.default_rng(asked.seed), ModelFolder().encoder()
    items = list(World().items("memory"))
    main_ones = [items[i].document for i in rng.choice(len(items), asked.documents, replace=False)]
    planted = rng.choice(len(main_ones), round(SHARE / (1 - SHARE) * len(main_ones)), replace=False)
    corpus = list(main_ones)
    for number, row in enumerate(planted):
        picture = main_ones[row].images[0]
        corpus.append(Document.of(main_ones[row].text or "", (picture, *copies(picture.pixels))[number % 4]))
    group = np.concatenate([np.arange(len(main_ones)), planted])  # what is a copy of what
    vectors, queries = encoder.embed(corpus), draw_queries(corpus, encoder, (0.0,), rng)

    def counted(threshold: float | None) -> tuple[int, float, float]:
        started = time.perf_counter()
        found = document_neighbours(queries, vectors, 0, K, strategy_for(encoder), copies=threshold)  # (N, 2, K)
        passed = time.perf_counter() - started
        copied = (found >= 0) & (group[found] == group[: len(found), None, None])
        return int(copied.any(axis=2).sum()), float((found >= 0).mean()), passed

    before, _, before_s = counted(None)
    after, filled, after_s = counted(encoder.copy_threshold)
    told = {
        "documents": len(corpus),
        "planted": len(planted),
        "queries": 2 * len(corpus),
        "copy_threshold": encoder.copy_threshold,
        "duplicates_in_context_before": before,
        "duplicates_in_context": after,
        "contexts_filled": round(filled, 4),
        "seconds_before": round(before_s, 2),
        "seconds": round(after_s, 2),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
