from __future__ import annotations

from pathlib import Path

import pytest

from racm3 import cli
from racm3.errors import ConfigError
from racm3.serve import guard
from racm3.serve.guard import Rates, Tokens
from racm3.serve.limits import Limits

GOOD = "x" * 16


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_where_others_reach_it_nothing_is_served_without_a_token(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--host", host]) == 2
    assert f"others can reach {host}, so a token is wanted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ("# nobody\n", "holds no token"),
        (GOOD, "a line is 'read TOKEN' or 'write TOKEN'"),
        (f"admin {GOOD}", "a line is"),
        ("read short", "has 5 characters, and 16 are the least"),
        (f"read {GOOD}é", "in ASCII"),
    ],
)
def test_token_files_that_do_not_do(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "tokens"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        Tokens.load(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.load(tmp_path / "none")


def test_a_token_file(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# who\nread {GOOD}r\n\nwrite {GOOD}w # the boss\n", encoding="utf-8")
    tokens = Tokens.load(file)
    headers = (f"Bearer {GOOD}r", f"bearer  {GOOD}w", f"Bearer {GOOD}", f"Basic {GOOD}w", "", "Bearer é")
    assert [tokens.scope(header) for header in headers] == ["read", "write", None, None, None, None]


def test_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(guard.time, "monotonic", lambda: now)
    rates = Rates(60)
    assert [rates.wait_s("a") for _ in range(61)] == [0.0] * 60 + [1.0]
    assert rates.wait_s("b") == 0
    now = 1.0
    assert [rates.wait_s("a"), rates.wait_s("a")] == [0.0, 1.0]
    now = 1000.0
    assert sum(rates.wait_s("a") == 0 for _ in range(100)) == 60
    for caller in range(guard.CALLERS + 1):
        rates.wait_s(str(caller))
    assert len(rates._buckets) == guard.CALLERS


def test_limits_out_of_range() -> None:
    with pytest.raises(ConfigError, match="limits.queue is 0; it must be 1 or above"):
        Limits(queue=0)
