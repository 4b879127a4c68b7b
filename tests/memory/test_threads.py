"""One memory, used by several threads at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from racm3.memory.memory import Memory
from tests.memory.test_memory import D, items, unit

READERS, SECONDS = 7, 3.0


@pytest.mark.parametrize("search", ["exact", "index"])
def test_seven_threads_search_while_another_one_writes(tmp_path: Path, search: str) -> None:
    vectors = unit(400)
    made = Memory.create(tmp_path / "m", "encoder-a", D)
    made.add(items(300), vectors[:300])
    if search == "index":
        made.index()
    memory = Memory.open(tmp_path / "m", search=search)  # type: ignore[arg-type]
    ended, errors, searches = threading.Event(), list[BaseException](), [0] * READERS

    def read(thread: int) -> None:
        chance = np.random.default_rng(thread)
        while not ended.is_set():
            row = int(chance.integers(300))  # which nothing changes
            (ranking,) = memory.search(vectors[row][None], 3)
            assert ranking.ids[0] == str(row)
            np.testing.assert_array_equal(ranking.vectors[0], vectors[row])
            assert memory.get([str(row)]) == items(1, row)
            assert len(memory) >= 300
            searches[thread] += 1

    def write() -> None:
        until, row = time.monotonic() + SECONDS, 300
        while time.monotonic() < until or row < 303:
            memory.add(items(1, row), vectors[row][None])
            assert memory.search(vectors[row][None], 1)[0].ids == [str(row)]
            memory.put(items(1, row), vectors[row][None])
            if row % 5 == 0:
                memory.remove([str(row)])
            if row % 10 == 3:
                memory.compact()
            row += 1

    def noted(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)
            ended.set()

    threads = [threading.Thread(target=noted, args=(lambda thread=thread: read(thread),)) for thread in range(READERS)]
    writer = threading.Thread(target=noted, args=(write,))
    for thread in (*threads, writer):
        thread.start()
    writer.join()
    ended.set()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert min(searches) > 0


def test_threads_that_write_take_turns(tmp_path: Path) -> None:
    memory = Memory.create(tmp_path / "m", "encoder-a", D)
    errors = list[BaseException]()

    def write(first: int) -> None:
        try:
            for row in range(first, first + 3):
                memory.add(items(1, row), unit(1, seed=row))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(10 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert sorted(memory.ids) == sorted(str(10 * number + i) for number in range(8) for i in range(3))
