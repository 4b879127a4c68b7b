"""Pool: one function over many pieces of work, on all machines of a Ray cluster.

The cluster is the one that RAY_ADDRESS leads to or that runs on this machine; else one is started here. A worker that
dies is replaced, and its piece done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from racm3.errors import InputError

__all__ = ["Work", "Workers", "each"]

Work = Callable[[Any], Any]
"""From a piece to JSON."""


@dataclass(frozen=True)
class Workers:
    """How many processes work, and what each of them takes: a share of a GPU, or else a CPU."""

    count: int
    gpus_each: float = 0.0

    @property
    def device(self) -> str:
        return "cuda" if self.gpus_each else "cpu"

    @property
    def takes(self) -> dict[str, Any]:
        return {"num_gpus": self.gpus_each} if self.gpus_each else {"num_cpus": 1}


def each(pieces: Sequence[Any], workers: Workers, make: Callable[..., Work], *given: Any) -> Iterator[tuple[int, Any]]:
    """For each of ``pieces``, its number and what ``make(*given)`` makes of it, as they are done.

    ``make`` is called once a worker. Raises InputError if Ray is missing, or has not what the workers take.
    """
    try:
        import ray
    except ImportError:
        raise InputError("work on many machines needs the extra scale: pip install 'racm3[scale]'") from None
    if not pieces:
        return
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    ((kind, share),) = workers.takes.items()
    kind, wanted = kind.removeprefix("num_").upper()[:-1], workers.count * share
    there = ray.cluster_resources().get(kind, 0)
    if workers.count < 1 or there < wanted:
        raise InputError(
            f"{workers.count} workers take {wanted:g} {kind}s, but the cluster has {there:g}; give another number of "
            "workers, or add machines with `ray start --address`"
        )
    ray.data.DataContext.get_current().enable_progress_bars = False

    class Worker:
        def __init__(self) -> None:
            self._work = make(*given)

        def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
            return {"done": [json.dumps([int(number), self._work(pieces[number])]) for number in batch["id"]]}

    # Not ray.data.range, whose reading waits for ever for a CPU where the workers have taken all.
    numbers = ray.data.from_items([{"id": number} for number in range(len(pieces))], override_num_blocks=len(pieces))
    done = numbers.map_batches(
        Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(pieces))),
        **workers.takes,
    )
    for row in done.iter_rows():
        number, result = json.loads(row["done"])
        yield number, result
