"""Search among many vectors: the memory, exactly and by its index, beside FAISS flat and HNSW on the same vectors.

The vectors are clustered as those of an encoder are: themes, topics in them, and documents that differ in few
directions. --memory keeps what was made for another run. FAISS HNSW, which needs 78 minutes on one thread to link a
million vectors, is shown on the first --hnsw of them: an easier search, and no number of it goes into the JSON line.

Answers are compared first: exact search must find what FAISS flat finds. Then, in one process and on the same threads,
single queries are timed in turn. The index is asked in a process of its own, whose peak memory is measured.

Ends with one JSON line: times of a query in ms, recall of the true 10 nearest, peak memory of indexed search in GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from racm3.data import Item
from racm3.document import Document
from racm3.memory.memory import Memory

D, K = 512, 10
ADDED_AT_ONCE = 50_000
HNSW_LINKS, HNSW_EF = 32, 128


class Vectors:
    """Draws unit vectors (count, D): themes > topics of unequal sizes > documents."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        themes = rng.standard_normal((100, D)).astype(np.float32)
        self.topics = themes[rng.integers(100, size=10_000)] + 0.8 * rng.standard_normal((10_000, D)).astype(np.float32)
        self.directions = rng.standard_normal((64, D)).astype(np.float32) / 8
        shares = 1 / np.arange(1, len(self.topics) + 1) ** 0.7
        self.shares = shares / shares.sum()

    def draw(self, count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        made = self.topics[rng.choice(len(self.topics), size=count, p=self.shares)]
        made += 0.7 * rng.standard_normal((count, 64)).astype(np.float32) @ self.directions
        made += 0.3 * rng.standard_normal((count, D)).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def fill(path: Path, count: int) -> None:
    """Make the memory, unless it is there."""
    if path.exists():
        return
    started, world, memory = time.perf_counter(), Vectors(), Memory.create(path, "benchmark", D)
    for start in range(0, count, ADDED_AT_ONCE):
        rows = range(start, min(start + ADDED_AT_ONCE, count))
        items = [Item(str(row), Document.of(f"document {row}"), {"row": row}, "") for row in rows]
        memory.add(items, world.draw(len(rows), seed=1000 + start))
    print(f"filled with {count:,} documents in {time.perf_counter() - started:.0f} s", flush=True)
    started = time.perf_counter()
    found = memory.index()
    print(f"indexed in {time.perf_counter() - started:.0f} s; self-check: recall {found:.3f}", flush=True)


def milliseconds(searches: dict[str, Callable[[np.ndarray], object]], queries: np.ndarray) -> dict[str, np.ndarray]:
    """Times of each search for each query, in turn."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for query in queries:
        for name, search in searches.items():
            started = time.perf_counter()
            search(query[None])
            times[name].append(1e3 * (time.perf_counter() - started))
    return {name: np.array(taken) for name, taken in times.items()}


def percentiles(times: np.ndarray) -> str:
    return f"p50 {np.percentile(times, 50):.1f} ms, p99 {np.percentile(times, 99):.1f} ms"


def peak_gb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def indexed(path: Path, queries: np.ndarray) -> dict[str, object]:
    started = time.perf_counter()
    memory = Memory.open(path, search="index")
    opened = time.perf_counter() - started
    memory.search(queries[-1:], K)  # the first one reads the index
    loaded = time.perf_counter() - started
    times = milliseconds({"": lambda query: memory.search(query, K)}, queries)[""]
    found = [[int(i) for i in ranking.ids] for ranking in memory.search(queries, K)]
    return {"open_s": opened, "first_s": loaded, "times": times.tolist(), "found": found, "rss_gb": peak_gb()}


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(t)) / K for f, t in zip(found.tolist(), true.tolist(), strict=True)]))


def measure(path: Path, queries: np.ndarray, threads: int, hnsw: int) -> dict[str, float]:
    import faiss

    faiss.omp_set_num_threads(threads)
    command = [sys.executable, __file__, "--memory", str(path), "--indexed-only", "--queries", str(len(queries))]
    by_index = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    started = time.perf_counter()
    memory = Memory.open(path, search="exact")
    memory.search(queries[:1], K)  # the first one reads all vectors
    print(f"exact is ready in {time.perf_counter() - started:.1f} s and peaks at {peak_gb():.1f} GB")
    flat = faiss.IndexFlatIP(D)
    flat.add(memory.vectors)
    true_scores, true = flat.search(queries, K)
    rankings = memory.search(queries, K)
    np.testing.assert_allclose([ranking.scores for ranking in rankings], true_scores, atol=1e-5)
    agree = recall(np.array([[int(i) for i in ranking.ids] for ranking in rankings]), true)
    assert agree > 0.999, f"exact search and FAISS flat find the same but for rounding, and not {agree}"
    searches: dict[str, Callable[[np.ndarray], object]] = {
        "exact": lambda query: memory.search(query, K),
        "FAISS flat": lambda query: flat.search(query, K),
    }
    if hnsw:
        graph = faiss.IndexHNSWFlat(D, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch, started = HNSW_EF, time.perf_counter()
        part = flat.reconstruct_n(0, min(hnsw, flat.ntotal))
        graph.add(part)
        built, smaller = time.perf_counter() - started, faiss.IndexFlatIP(D)
        smaller.add(part)
        found = recall(graph.search(queries, K)[1], smaller.search(queries, K)[1])
        print(f"FAISS HNSW of {len(part):,} vectors built in {built:.0f} s; recall {found:.3f} among them")
        searches["FAISS HNSW"] = lambda query: graph.search(query, K)
    times = milliseconds(searches, queries)
    for name, taken in {**times, "indexed": np.array(by_index["times"])}.items():
        print(f"{name:11} {percentiles(taken)}")
    return {
        "exact_p50_ms": round(float(np.percentile(times["exact"], 50)), 2),
        "faiss_flat_p50_ms": round(float(np.percentile(times["FAISS flat"], 50)), 2),
        "indexed_recall": round(recall(np.array(by_index["found"]), true), 4),
        "indexed_p50_ms": round(float(np.percentile(by_index["times"], 50)), 2),
        "indexed_rss_gb": round(by_index["rss_gb"], 2),
        "open_s": round(by_index["open_s"], 2),
        "indexed_first_s": round(by_index["first_s"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", type=Path, help="where the memory is kept for another run; else it is deleted")
    parser.add_argument("--hnsw", type=int, default=100_000, help="vectors in FAISS HNSW; 0 leaves it out")
    parser.add_argument("--indexed-only", action="store_true", help="of the process whose memory is measured")
    asked = parser.parse_args()
    queries = Vectors().draw(asked.queries, seed=7)
    if asked.indexed_only:
        print(json.dumps(indexed(asked.memory, queries)))
        return
    if os.environ.get("OMP_NUM_THREADS") != str(asked.threads):  # numpy's BLAS reads it when it starts
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as folder:
        path = asked.memory or Path(folder) / "memory"
        fill(path, asked.count)
        print(json.dumps(measure(path, queries, asked.threads, asked.hnsw)))


if __name__ == "__main__":
    main()
