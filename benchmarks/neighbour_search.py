"""Diverse neighbours of every document of a corpus, beside FAISS's flat batch search on the same vectors and threads.

FAISS finds the nearest candidates, and the redundancy rule walks down its ranking: the same neighbours must come out.
FAISS is timed for its search alone. The queries are some documents of the corpus: all of them would take an hour, and
cost the same each.

Times are of this process's own processor time where --cpu is given: on a machine that others use too, it is what can
be compared. Ends with one JSON line: documents/s, the ratio of our documents/s to those of FAISS, and whether the
results are equal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import faiss
import numpy as np
import torch

from benchmarks.memory_search import Vectors
from racm3.retriever.corpus_neighbours import neighbours
from racm3.retriever.strategy import CANDIDATES, RelevanceRedundancy

K, STRATEGY = 2, RelevanceRedundancy(0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=1024, help="a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="count processor time instead of time")
    asked = parser.parse_args()
    clock = time.process_time if asked.cpu else time.perf_counter
    torch.set_num_threads(asked.threads)
    faiss.omp_set_num_threads(asked.threads)
    vectors = Vectors().draw(asked.count, seed=0)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    equal, ours, theirs = True, list[float](), list[float]()
    for number in range(asked.rounds):
        rows = np.arange(number * asked.queries, (number + 1) * asked.queries) % asked.count
        started = clock()
        found = neighbours(vectors[rows], vectors, K, STRATEGY, rows)
        ours.append(asked.queries / (clock() - started))
        started = clock()
        scores, ranked = index.search(vectors[rows], CANDIDATES + 1)
        theirs.append(asked.queries / (clock() - started))
        for row, mine, row_scores, ranking in zip(rows, found, scores, ranked, strict=True):
            others = ranking != row  # never its own neighbour
            taken = STRATEGY.select(row_scores[others], vectors[ranking[others]], K)
            equal &= len(taken) < K or mine.tolist() == ranking[others][taken].tolist()
        print(f"round {number + 1}: {ours[-1]:.0f} documents/s, FAISS flat {theirs[-1]:.0f}", flush=True)
    print(f"all {asked.count:,} documents, one query each, take {asked.count / statistics.median(ours) / 60:.0f} min")
    ratio = statistics.median(own / other for own, other in zip(ours, theirs, strict=True))
    result = {"docs_per_s": round(statistics.median(ours), 1), "ratio_vs_faiss": round(ratio, 2), "equal": equal}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
