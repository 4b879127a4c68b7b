"""Whose turn it is: a client that asks for much waits for itself."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from racm3.serve.fair import FairQueue, Gate


def test_one_that_asks_for_little_goes_before_what_others_ask_for_next() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(5):
        queue.put(f"many {number}", "many", 10)
    assert queue.get() == "many 0"
    queue.put("few", "few", 1)
    assert [queue.get() for _ in range(3)] == ["few", "many 1", "many 2"]
    queue.drop(lambda item: item == "many 3")
    assert list(queue) == ["many 4"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), min_size=1, max_size=40))
def test_nobody_is_ahead_by_more_than_one_piece_of_work(asked: list[tuple[str, int]]) -> None:
    """While two clients both wait, what they were given differs by no more than the largest piece of each."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, cost in asked:
        queue.put((client, cost), client, cost)
    given_to, waiting = dict.fromkeys("abc", 0), list(asked)
    largest = max(cost for _, cost in asked)
    while queue:
        client, cost = queue.get()
        given_to[client] += cost
        waiting.remove((client, cost))
        left = [given_to[other] for other in "abc" if any(other == one for one, _ in waiting)]
        assert not left or max(left) - min(left) <= 2 * largest


def test_a_gate_lets_so_many_in_and_those_that_leave_the_line_hold_up_nobody() -> None:
    async def run() -> list[str]:
        gate, order, inside = Gate(1), list[str](), 0

        async def work(name: str, client: str) -> None:
            nonlocal inside
            async with gate.place(client, 1):
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)
                order.append(name)
                inside -= 1

        tasks = [asyncio.create_task(work(f"many {i}", "many")) for i in range(4)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(work("few", "few")))
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order

    assert asyncio.run(run()) == ["many 0", "many 1", "few", "many 3"]
