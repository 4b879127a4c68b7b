from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from racm3 import cli
from racm3.errors import ConfigError
from racm3.scale.memory_plan import Assumptions, lines

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")


def value(made: list[str], name: str) -> float:
    (line,) = (line for line in made if line.strip().startswith(name))
    return float(re.search(r"[\d,.]+", line.strip().removeprefix(name))[0].replace(",", ""))  # type: ignore[index]


def test_the_plan_is_what_a_hand_would_compute() -> None:
    asked = Assumptions(
        1e6, dimension=500, document_kb=98, machines=1, gpus=1, cores=10, gpu_tflops=10, share=0.5,
        encoder_gflop=18, core_ms=3.6, queries=2,
    )  # fmt: skip
    made = lines(asked)
    assert value(made, "table") == 0.1  # TB of 100 kB
    assert value(made, "vectors") == 2
    assert value(made, "on GPUs") == 1.0  # 1e6 x 18e9 / 5e12 s
    assert value(made, "on cores") == 0.1  # 1e6 x 3.6 ms / 10 s
    assert value(made, "commits") == 60
    assert value(made, "neighbours") == 0  # 2 x 1e12 x 1000 / 5e12 s = 400 s


def test_nothing_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="gpus of a plan is above 0, but 0 was given"):
        Assumptions(gpus=0)


def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(r"^```sh\nracm3 (memory plan.*)\n```\n+```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(shown) >= 1
    for command, printed in shown:
        assert cli.main(shlex.split(command)) == 0
        assert capsys.readouterr().out == printed
