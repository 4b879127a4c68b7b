"""What a memory of very many documents takes, before anything starts: bytes, hours, machines.

Each line is a product of `Assumptions`, which are options of ``racm3 memory plan``; their defaults are measured by the
benchmark that each names, or are a data sheet's. docs/scale.md shows and explains the result.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from racm3.errors import ConfigError
from racm3.memory.search import PROBES, REFINED
from racm3.memory.store import FRAGMENT_BYTES, NUMBERS_A_CODE
from racm3.retriever.corpus_neighbours import PART, QUERIES_AT_ONCE, TABLE_AT_ONCE
from racm3.scale.embed import COMMIT_S

__all__ = ["Assumptions", "lines"]

GB, TB = 1e9, 1e12
HOUR_S = 3600
ID_BYTES = 64
"""What a set of hashes takes for each."""


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted."""

    documents: float = 150e6
    """Captioned pictures; the paper's memory."""
    dimension: int = 768
    """Numbers of a vector; CLIP ViT-L/14's."""
    document_kb: float = 130.0
    """Of a document in the table, without its vector: a 256 px picture as PNG (benchmarks/memory_ingest.py)."""
    machines: int = 8
    gpus: int = 8
    """Of each machine."""
    cores: int = 96
    """Of each machine."""
    gpu_tflops: float = 67.0
    """Dense float32 rate of a GPU, in which vectors are made and compared; an H100's, by its data sheet."""
    share: float = 0.6
    """Of that rate which is reached."""
    encoder_gflop: float = 175.0
    """Of one document: CLIP ViT-L/14 reads a picture (162) and 77 text tokens (13)."""
    core_ms: float = 25.0
    """Of one core, for all of a document but the encoder's forward pass (benchmarks/memory_ingest.py)."""
    core_gflops: float = 128.0
    """Rate of a core in the search for neighbours: 624 documents/s among 200,000 x 512 (benchmarks/neighbours.py)."""
    queries: int = 4
    """Draws of a document in the search for neighbours: its text and its picture, whole and with a part dropped."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if (value := getattr(self, field.name)) <= 0:
                raise ConfigError(f"{field.name} of a plan is above 0, but {value} was given")


def lines(a: Assumptions) -> list[str]:
    """What it takes, line by line, each with its arithmetic."""
    vector = 4 * a.dimension
    table = a.documents * (1e3 * a.document_kb + vector)
    fragments = table / FRAGMENT_BYTES
    partitions = math.isqrt(int(a.documents))
    code = a.dimension // NUMBERS_A_CODE + 8
    rate = a.gpu_tflops * a.share * 1e12  # FLOP/s of a GPU
    gpus, cores = a.machines * a.gpus, a.machines * a.cores
    on_gpus = a.documents * a.encoder_gflop * 1e9 / rate / gpus / HOUR_S
    on_cores = a.documents * a.core_ms / 1e3 / cores / HOUR_S
    embedding = max(on_gpus, on_cores)
    versions = embedding * HOUR_S / COMMIT_S
    products = a.queries * a.documents**2 * 2 * a.dimension
    finding = products / rate / gpus / HOUR_S
    finding_on_cores = products / (1e9 * a.core_gflops) / cores / HOUR_S
    block_ms = 1e3 * QUERIES_AT_ONCE["cuda"] * TABLE_AT_ONCE * 2 * a.dimension / rate
    rows = [
        ("table", f"{table / TB:.1f} TB", f"{a.documents:,.0f} x ({a.document_kb:g} kB + {a.dimension} x 4 B)"),
        ("  in fragments", f"{fragments:,.0f}", f"of {FRAGMENT_BYTES / 2**20:.0f} MiB"),
        ("vectors", f"{a.documents * vector / GB:.0f} GB", "what exact search holds in memory: too much from here on"),
        ("index", f"{a.documents * code / GB:.0f} GB", f"{code} B a document: {a.dimension // NUMBERS_A_CODE} + 8"),
        ("  of partitions", f"{partitions:,}", f"a search reads {PROBES}, then {REFINED} whole vectors"),
        ("embedding", f"{embedding:.1f} h", f"the longer of the next two, on {a.machines} machines"),
        ("  on GPUs", f"{on_gpus:.1f} h", f"{a.encoder_gflop:g} GFLOP a document, {gpus} x {rate / 1e12:.0f} TFLOP/s"),
        ("  on cores", f"{on_cores:.1f} h", f"{a.core_ms:g} ms a document, {cores} cores"),
        ("  writes", f"{table / embedding / HOUR_S / GB:.2f} GB/s", "all machines together"),
        ("  commits", f"{versions:,.0f}", f"one in {COMMIT_S:.0f} s; what a kill loses is work of that time"),
        ("  of memory", f"{a.documents * ID_BYTES / GB:.1f} GB", f"where it is started: {ID_BYTES} B an id"),
        ("neighbours", f"{finding:.0f} h", f"{products:.1e} FLOP: {a.queries} x N x N x 2 x {a.dimension}"),
        ("  without GPUs", f"{finding_on_cores:.0f} h", f"at {a.core_gflops:g} GFLOP/s a core"),
        ("  in parts", f"{a.documents / PART:,.0f}", f"of {PART} documents: what a kill makes do again"),
        ("  of memory", f"{a.documents * vector / GB:.0f} GB", "of each machine: the vectors' file, mapped"),
        ("  to a GPU", f"{TABLE_AT_ONCE * vector / GB / block_ms * 1e3:.1f} GB/s", "vectors brought while it computes"),
    ]
    return [f"{name:16}{value:>13}   {arithmetic}" for name, value, arithmetic in rows]
