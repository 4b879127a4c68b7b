from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from racm3.cli.generate_verbs import Caption, Generate
from racm3.document import Image
from racm3.settings import Settings
from racm3.util.options import options_of
from tests.cli.as_typed import run


def sources(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if re.match(r"source  -?\d\.\d{3}  a .* square \d  ", line)]


def test_generate_draws_and_prints_its_sources(
    models: Path, memory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"models": models, "memory": memory, "out": tmp_path / "new" / "a.png"}
    command = "generate 'a red square' --models {models} --memory {memory} --out {out}"
    assert run(command, **places) == 0
    printed = capsys.readouterr().out
    assert len(sources(printed)) in (1, 2)  # equal squares are redundant
    assert printed.splitlines()[-1] == f"wrote {places['out']}"
    first = Image.open(places["out"])
    assert first.pixels.shape == (32, 32, 3)
    assert run(command, **places) == 0
    assert Image.open(places["out"]) == first
    assert run(command + " --seed 1 --samples 2 --temperature 1.5 --context-aware 2 --guidance 1 --k 1", **places) == 0
    assert Image.open(places["out"]) != first


def test_without_a_memory_nothing_is_retrieved(
    models: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        "generate 'a red square' --models {models} --out {out}",
        "caption {picture} --models {models}",
        "infill {picture} --box 10 0 10 10 --models {models} --out {out}",
    ):
        assert run(command, models=models, picture=picture, out=tmp_path / "a.png") == 0
        printed = capsys.readouterr()
        assert "no --memory was given: nothing is retrieved" in printed.err
        assert "source" not in printed.out


def test_caption_prints_words_below_its_sources(
    models: Path, memory: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run("caption {picture} --models {models} --memory {memory}", picture=picture, models=models, memory=memory) == 0
    )
    printed = capsys.readouterr().out
    assert sources(printed)
    assert printed.split(sources(printed)[-1])[1].strip()


def test_a_box_is_the_same_as_its_mask(models: Path, memory: Path, picture: Path, tmp_path: Path) -> None:
    places = {"models": models, "memory": memory, "picture": picture, "out": tmp_path / "a.png"}
    places["mask"] = tmp_path / "mask.png"
    hidden = np.zeros((20, 40, 3), np.uint8)
    hidden[0:10, 10:20] = 255
    Image(hidden).pil.save(places["mask"])
    command = "infill {picture} --text 'a red square' --models {models} --memory {memory} --out {out}"
    assert run(command + " --box 10 0 10 10", **places) == 0
    boxed = Image.open(places["out"])
    assert boxed.pixels.shape == (32, 32, 3)
    assert (boxed.pixels[:, 16:] == (255, 0, 0)).all()  # kept
    assert not (boxed.pixels[:16, :16] == (255, 0, 0)).all()
    assert run(command + " --mask {mask}", **places) == 0
    assert Image.open(places["out"]) == boxed


def test_several_boxes_and_an_overlay(
    models: Path, memory: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"models": models, "memory": memory, "picture": picture}
    places |= {"out": tmp_path / "a.png", "overlay": tmp_path / "new" / "b.png"}
    command = "infill {picture} --models {models} --memory {memory} --out {out} --overlay {overlay}"
    assert run(command + " --box 10 0 4 4 26 16 4 4 --contexts 2 --k 1", **places) == 0
    filled = Image.open(places["out"]).pixels
    assert (filled[16:, :16] == (255, 0, 0)).all()
    assert not (filled[:16, :16] == (255, 0, 0)).all()
    assert not (filled[16:, 16:] == (255, 0, 0)).all()
    shown = len(sources(capsys.readouterr().out))
    height, width = Image.open(places["overlay"]).pixels.shape[:2]
    assert width == (1 + shown) * height
    assert run("generate 'a red square' --models {models} --out {out} --overlay {overlay}", **places) == 2
    assert "there is no source to draw an overlay of" in capsys.readouterr().err


def test_an_edit_depends_on_its_control(models: Path, picture: Path, tmp_path: Path) -> None:
    places = {"models": models, "picture": picture, "out": tmp_path / "a.png", "control": tmp_path / "control.png"}
    Image(np.full((20, 20, 3), (0, 0, 255), np.uint8)).pil.save(places["control"])
    command = "edit {picture} --box 10 0 20 20 --models {models} --out {out} --control"
    assert run(command + " {control}", **places) == 0
    blue = Image.open(places["out"])
    assert run(command + " {picture}", **places) == 0
    assert Image.open(places["out"]) != blue


def test_classify_prints_labels_with_probabilities(
    models: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "classify {picture} --models {models} --example 'a=b={picture}' Y={picture}"
    assert run(command, models=models, picture=picture) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line[7:] for line in lines} == {"a=b", "Y"}
    assert sum(float(line[:5]) for line in lines) == pytest.approx(1, abs=0.002)


def test_an_exported_generator_opens_in_transformers(models: Path, tmp_path: Path) -> None:
    assert run("export --models {models} --out {out}", models=models, out=tmp_path / "out") == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<eos>"


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("generate ' ' --out {new}.png", "error: the text is empty"),
        ("generate fox --out {new}", "error: a picture cannot be written as {new}; end its name with .png"),
        ("generate fox --out {picture}/a.png", "error: {picture}/a.png is a folder, or lies below a file"),
        ("generate fox --out {new}.png --models {new}", "error: there is no model folder {new}"),
        ("generate fox --out {new}.png --models {models} --memory {new}", "error: the memory {new} does not exist"),
        ("generate fox --out {new}.png --k -1", "error: settings.k is -1; it must be 0 or above"),
        ("generate fox --out {new}.png --seed -1", "error: settings.seed is -1; it must be 0 or above"),
        ("generate fox --out {new}.png --temperature -1", "error: sampling.temperature is -1.0"),
        ("caption {new}", "error: there is no file {new}"),
        ("caption {text}", "error: {text} is not a picture that can be read"),
        ("caption {picture} --models {models} --memory {text}", "error: the memory {text} is no memory"),
        ("infill {new} --box 0 0 1 1 --out {new}.png", "error: there is no file {new}"),
        ("infill {text} --box 0 0 1 1 --out {new}.png", "error: {text} is not a picture"),
        ("infill {picture} --out {new}.png", "error: say what to hide: give either --box"),
        ("infill {picture} --box 0 0 1 1 --mask {picture} --out {new}.png", "error: say what to hide"),
        ("infill {picture} --box 0 0 41 20 --out {new}.png", "error: the box 0 0 41 20 is not inside the picture"),
        ("infill {picture} --box 10 0 0 5 --out {new}.png", "error: the box 10 0 0 5 is not inside the picture"),
        ("infill {picture} --box 0 0 5 20 --out {new}.png --models {models}", "error: nothing of a picture is hidden"),
        ("infill {picture} --mask {picture} --out {new}.png", "error: the mask {picture} hides nothing"),
        (
            "infill {picture} --mask {small} --out {new}.png",
            "error: the mask {small} is 10 x 10 px, the picture 40 x 20",
        ),
        ("edit {picture} --control {new} --box 10 0 5 5 --out {new}.png", "error: there is no file {new}"),
        ("edit {picture} --control {picture} --out {new}.png", "error: say what to hide"),
        ("classify {picture} --example {picture}", "error: the example '{picture}' has no label"),
        ("classify {picture} --models {models} --example a={picture}", "error: give two labels or more"),
        ("export --models {new} --out {new}", "error: there is no model folder {new}"),
        ("infill {picture} --box 10 0 5 5 --text= --out {new}.png", "error: the text is empty"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(
    command: str, printed: str, models: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"models": models, "picture": picture, "new": tmp_path / "new"}
    places |= {"text": tmp_path / "text.png", "small": tmp_path / "small.png"}
    places["text"].write_text("no picture")
    Image(np.zeros((10, 10, 3), np.uint8)).pil.save(places["small"])
    before = set(tmp_path.iterdir())
    assert run(command, **places) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(printed.format(**places))
    assert set(tmp_path.iterdir()) == before


OTHER = {
    "k": 3,
    "contexts": 2,
    "samples": 4,
    "seed": 7,
    "max_text_tokens": 5,
    "top_k": 9,
    "contrast_k": 9,
    "filters": {},
}
"""Another value of an option; 0.6 for those that are shares or strengths."""


@pytest.mark.parametrize("name", [name for name, _, _ in options_of(Settings())])
def test_every_option_of_a_request_can_be_set(name: str) -> None:
    value = OTHER.get(name.rpartition(".")[2], 0.6)
    for verb in (Generate(text="fox", out=Path("a.png")), Caption(picture=Path("a.png"))):
        assert verb.settings() == Settings()
        changed = dict(one[:2] for one in options_of(replace(verb, set=(f"{name}={json.dumps(value)}",)).settings()))
        assert changed == {one: usual for one, usual, _ in options_of(Settings())} | {name: value}


def test_a_flag_counts_more_than_set_and_several_captions_are_drawn() -> None:
    image = Generate(text="fox", out=Path("a.png"), k=3, temperature=0.25, guidance=2.0, set=("k=1", "image.top_p=.8"))
    assert (image.settings().k, image.settings().image.top_p) == (3, 0.8)
    assert (image.settings().image.temperature, image.settings().image.guidance) == (0.25, 2.0)
    caption = Caption(picture=Path("a.png"), samples=4)
    assert caption.settings().text.temperature == 1.0
    assert replace(caption, set=("text.temperature=0.7",)).settings().text.temperature == 0.7
    assert replace(caption, temperature=0.2).settings().text.temperature == 0.2
