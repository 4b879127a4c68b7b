"""On a cluster of two nodes of one CPU each: the same memory and the same neighbours as on one machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from racm3.data import recognise
from racm3.errors import InputError
from racm3.memory.memory import Memory
from racm3.retriever.corpus_neighbours import memory_neighbours
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import Changes, ingest
from racm3.scale.embed import embed
from racm3.scale.neighbours import neighbours
from racm3.scale.pool import Workers, each
from tests.scale.test_embed import same

BOTH = Workers(2)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="needs the extra scale")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # by default any other work on the machine comes before Ray's workers
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
        made.add_node(num_cpus=1, object_store_memory=10**8)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    assert [node["Resources"]["CPU"] for node in ray.nodes()] == [1, 1]  # so that two workers take both
    yield
    ray.shutdown()
    made.shutdown()


def test_a_memory_and_its_neighbours(folder: Path, shards: Path, tmp_path: Path, encoder: Encoder) -> None:
    alone = Memory.create(tmp_path / "alone", encoder.fingerprint, encoder.dimension)
    ingest(alone, encoder, recognise(str(shards / "00000[01].tar")).read())
    memory = Memory.create(tmp_path / "memory", encoder.fingerprint, encoder.dimension)
    assert embed(memory, folder, [recognise(str(shards / "00000[01].tar"))], BOTH) == Changes(added=16)
    same(memory, alone)
    memory_neighbours(memory, encoder, tmp_path / "near")
    neighbours(memory, folder, tmp_path / "near-too", BOTH)
    assert pq.read_table(tmp_path / "near-too").equals(pq.read_table(tmp_path / "near"))


def test_more_than_the_cluster_has_is_refused() -> None:
    for workers, said in ((Workers(3), "3 CPUs, but the cluster has 2"), (Workers(2, 0.5), "1 GPUs, but the cluster")):
        with pytest.raises(InputError, match=said):
            list(each([1], workers, lambda: json.dumps))
