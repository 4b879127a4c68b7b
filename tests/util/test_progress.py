from __future__ import annotations

import pytest

from racm3.util import progress


class Clock:
    """A monotonic clock that is told the time."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_without_a_terminal_a_line_now_and_then_and_one_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.progress() as report:
        for done, now in ((0, 0.0), (100, 10.0), (400, 40.0), (500, 50.0), (1000, 100.0)):
            clock.now = now
            report("documents", done, 1000)
        report("pages", 7, None)
    assert capsys.readouterr().err.splitlines() == [
        "documents: 400 of 1,000, 10/s, 1 min left",
        "documents: 1,000 of 1,000, 10/s",
        "pages: 7",
    ]


def test_what_was_done_before_is_not_taken_for_speed(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.progress() as report:
        report("documents", 90_000, 100_000)
        clock.now = 100.0
        report("documents", 90_100, 100_000)
    assert capsys.readouterr().err == "documents: 90,100 of 100,000, 1/s, 165 min left\n"


def test_what_is_counted_is_told_when_the_work_on_it_is_done() -> None:
    told: list[tuple[str, int, int | None]] = []
    for value in progress.counted("abc", "letters", lambda *one: told.append(one), 3):
        assert len(told) == "abc".index(value)
    assert told == [("letters", 1, 3), ("letters", 2, 3), ("letters", 3, 3)]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress.telling("documents", 1000) as report:
        report(10)
        report(1000)
    assert "1000 of 1000" in capsys.readouterr().err
