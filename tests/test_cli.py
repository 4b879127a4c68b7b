from __future__ import annotations

import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from racm3 import cli, errors
from racm3.data import Item, write_coco
from racm3.document import Document, Image
from racm3.model_folder import ModelFolder
from racm3.pipeline import Settings
from racm3.training.training_plan import Assumptions

ROOT = Path(__file__).parent.parent
PYTHON = {"cwd": ROOT, "capture_output": True, "text": True}


def functions(verbs: cli.Verbs, *words: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, verb in verbs.items():
        found |= {" ".join((*words, name)): verb} if callable(verb) else functions(verb, *words, name)
    return found


COMMANDS = functions(cli.VERBS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {'racm3 ' + command}".strip())


def test_functions_are_named_after_their_commands() -> None:
    for command, function in COMMANDS.items():
        name = getattr(function, "__name__", "")
        assert name == command.replace(" ", "_").replace("-", "_")


def test_the_help_page_is_the_help() -> None:
    made = subprocess.run([sys.executable, "docs/make_cli.py"], env={"PYTHONPATH": str(ROOT)}, **PYTHON, check=True)
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run make docs"


def test_help_loads_no_room() -> None:
    code = (
        "import sys, racm3.cli\n"
        "try: racm3.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lance', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], **PYTHON).stderr == ""


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        (errors.ConfigError("no\nsuch key"), 2, "error: no such key\n"),
        (ModuleNotFoundError("No module named 'emoji'"), 2, "error: No module named 'emoji'; run racm3 doctor"),
        (KeyboardInterrupt("stopped and saved"), 130, "error: stopped and saved\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_an_expected_error_is_one_line(
    raised: BaseException,
    status: int,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr(cli, "VERBS", {"fail": fail, "other": fail})
    assert cli.main(["fail"]) == status
    shown = capsys.readouterr().err
    assert shown.startswith(printed)
    assert shown.count("\n") == 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "VERBS", {"fail": fail, "other": fail})
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])


@pytest.mark.parametrize("status", [None, 0, 1])
def test_a_verb_gives_the_exit_status(status: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def verb() -> int | None:
        return status

    monkeypatch.setattr(cli, "VERBS", {"verb": verb, "other": verb})
    assert cli.main(["verb"]) == (status or 0)


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["doctor", "--nonsense"], ["scenes"], ["scenes", "nonsense"], ["scenes", "make"]]
)
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_an_unknown_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scenes", "make", str(tmp_path), "--set", "trian=3"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown key 'trian'; did you mean 'train'?")


def test_glyphs_need_their_font(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("emoji")
    assert cli.main(["scenes", "glyphs", "--font", str(tmp_path / "none.ttf"), "--folder", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: there is no font")
    assert list(tmp_path.iterdir()) == []


# From pictures to a memory that is searched, as a user types it

COLOURS = {"a red square": (255, 0, 0), "a green square": (0, 255, 0), "a blue square": (0, 0, 255)}
TINY = "dimension=8 vision_width=32 vision_layers=1 text_width=32 text_layers=1 image_size_px=16 patch_px=8"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of four pictures of each colour."""
    squares = [(name, colour, i) for name, colour in COLOURS.items() for i in range(4)]
    items = [
        Item(f"{name} {i}", Document.of(name, Image(np.full((20, 20, 3), colour, np.uint8))), {}, "test")
        for name, colour, i in squares
    ]
    return write_coco(items, tmp_path_factory.mktemp("data")).parent


def train_encoder(data: Path, out: Path, *settings: str) -> int:
    return cli.main(
        ["train", "encoder", str(data), "--out", str(out)]
        + ["--set", *TINY.split(), "text_ids=270", "batch_size=4", "loop.steps=2", *settings]
    )


@pytest.fixture(scope="module")
def encoder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder")
    assert train_encoder(data, out) == 0
    return out


@pytest.fixture(scope="module")
def memory(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory") / "squares"
    assert cli.main(["memory", "create", str(folder), str(data), "--encoder", str(encoder)]) == 0
    return folder


@pytest.fixture(scope="module")
def image_tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("image-tokenizer")
    tiny = ["model.encoder_width=8", "model.decoder_width=16", "model.image_size_px=32", "batch_size=4"]
    run = ["train", "image-tokenizer", str(data), "--out", str(out), "--set", *tiny, "loop.steps=2"]
    assert cli.main(run) == 0
    return out


def test_a_run_keeps_its_settings_and_resumes(
    data: Path, image_tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["--out", str(image_tokenizer), "--config", str(image_tokenizer / "run.json"), "--set", "loop.steps=3"]
    assert cli.main(["train", "image-tokenizer", str(data), *again]) == 0
    assert "resumed at step 2 of 3" in capsys.readouterr().err


SHAPE = "model.width=16 model.layers=1 model.heads=2 model.kv_heads=2 model.head_dim=8 model.mlp_width=16 compile=false"


@pytest.mark.parametrize("vanilla", [True, False])
def test_a_generator_is_trained(
    vanilla: bool, data: Path, image_tokenizer: Path, encoder: Path, tmp_path: Path
) -> None:
    run = ["train", "generator", str(data), "--out", str(tmp_path), "--image-tokenizer", str(image_tokenizer)]
    settings = ["--set", "text_ids=270", *SHAPE.split(), "tokens_per_step=100", "loop.steps=2"]
    if vanilla:
        assert cli.main([*run, *settings, "retrieved_shares=[1]"]) == 0
    else:
        assert cli.main([*run, "--encoder", str(encoder), *settings]) == 0
    assert {"config.json", "model.safetensors", "tokenizer.json", "run.json"} <= {p.name for p in tmp_path.iterdir()}


def test_one_command_says_what_to_try(
    data: Path, image_tokenizer: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "encoder").symlink_to(encoder)
    (tmp_path / "image-tokenizer").symlink_to(image_tokenizer)
    command = ["train", "generator", str(data), "--out", str(tmp_path / "generator")]
    settings = ["--set", "text_ids=270", *SHAPE.split(), "tokens_per_step=100", "loop.steps=1"]
    assert cli.main([*command, *settings]) == 0
    generate, caption = (line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[-2:])
    assert run(generate) == 0
    assert run(caption) == 0


def test_a_plan_is_printed_and_what_cannot_fit_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "--tokens", "1e9", "--mfu", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "3,701,184" in printed
    assert "mfu                 0.5" in printed
    assert cli.main(["plan", "--gpu-memory-gb", "1"]) == 2
    assert "more --gpus" in capsys.readouterr().err


def test_the_defaults_of_a_plan_are_those_of_the_library() -> None:
    options = inspect.signature(cli.plan).parameters
    assert {name: options[name].default for name in asdict(Assumptions())} == asdict(Assumptions())


def test_searching_prints_documents_with_scores(
    memory: Path, encoder: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((data / "images").glob("a%20red*"))
    arguments = ["--text", "a red square", "--image", str(picture), "--hits", "4", "--encoder", str(encoder)]
    assert cli.main(["memory", "search", str(memory), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2] for line in lines] == ["a red square"] * 4
    assert lines[0].startswith("1.000  ")


def test_a_memory_of_data_that_is_partly_broken(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for i in range(7):
        Image(np.full((20, 30, 3), i, np.uint8)).pil.save(data / f"{i}.png")
    (data / "0.txt").write_text("a black\npicture " * 9)
    (data / "3.png").write_text("no picture")
    places = {"memory": tmp_path / "new" / "memory", "data": data, "encoder": encoder}
    command = "memory create {memory} {data} --encoder {encoder}"

    assert run(command + " --strict", **places) == 2
    assert "3.png is broken" in capsys.readouterr().err
    assert not places["memory"].exists()

    assert run(command, **places) == 0
    printed = capsys.readouterr()
    lines = printed.err[printed.err.index("reading") :].splitlines()
    assert lines[:2] == [
        f"reading {data} as pictures, with .txt captions or none; the first documents:",
        "  0.png  'a black picture a black picture a black picture a black p...'  30 x 20 px",
    ]
    assert [line.split()[0] for line in lines[2:6]] == ["1.png", "2.png", "4.png", "5.png"]
    report = tmp_path / "new" / "memory.skipped.jsonl"
    assert lines[-1] == f"6 read · 5 pictures without caption · 1 broken: {report}"
    (skipped,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert (skipped["origin"], "is not a picture" in skipped["reason"]) == (str(data / "3.png"), True)
    assert f"{places['memory']} holds 6" in printed.out

    Image(np.zeros((9, 9, 3), np.uint8)).pil.save(tmp_path / "more.png")
    assert run("memory add {memory} {data} --encoder {encoder}", **(places | {"data": tmp_path / "more.png"})) == 0
    assert not report.exists()


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_the_life_of_a_memory(
    data: Path,
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    place: str,
) -> None:
    folder, out = tmp_path / "memory", tmp_path / "out"
    memory = folder if place == "folder" else f"{request.getfixturevalue('bucket')}/memory"
    monkeypatch.chdir(tmp_path)  # where the report of a bucket's skipped items would go

    def says(command: str, status: int = 0) -> str:
        places = {"memory": memory, "data": data, "encoder": encoder, "out": out}
        assert cli.main([word.format(**places) for word in command.split()]) == status
        return capsys.readouterr().out

    assert says("memory create {memory} {data} --encoder {encoder}").startswith("added 12;")
    assert says("memory add {memory} {data} --encoder {encoder}").startswith("unchanged 12;")
    (first, *_) = says("memory search {memory} --text fox --encoder {encoder} --out {out}/hits.png").splitlines()
    with PIL.Image.open(out / "hits.png") as sheet:
        assert sheet.width > sheet.height
    gone = first.split("  ")[1]
    assert cli.main(["memory", "remove", str(memory), gone]) == 0
    assert f"{memory} holds 11 documents" in capsys.readouterr().out
    assert says("memory sync {memory} {data} --encoder {encoder}").startswith("added 1, unchanged 11;")
    assert says("memory check {memory}") == "12 documents are sound, 0 are damaged\n"
    assert "1 now" in says("memory compact {memory}")
    assert says("memory export {memory} --out {out}/shards").startswith("wrote 12 documents to 1 shards")
    assert says("memory sync {memory} {out}/shards --encoder {encoder}").startswith("unchanged 12;")
    assert says("memory neighbours {memory} --out {out}/near --encoder {encoder}").startswith(
        "wrote the neighbours of 12"
    )
    assert len(pq.read_table(out / "near")) == 12 * 4
    assert "holds 12 documents" in says("memory re-embed {memory} --encoder {encoder}")
    if place == "bucket":
        assert "documents  12\n" in says("memory info {memory}")
        return
    min((folder / "data").iterdir(), key=lambda file: file.stat().st_size).write_bytes(b"")
    assert "12 are damaged and were removed" in says("memory check {memory} --repair", status=1)
    assert says("memory info {memory}").startswith("documents  0\n")


def test_info_counts_the_documents(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", "info", str(memory)]) == 0
    assert capsys.readouterr().out.startswith("documents  12\n")


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("memory create {memory} {data} --encoder {encoder}", "error: there is already something at"),
        ("memory create {new} {data}/nowhere --encoder {encoder}", "error: there is no"),
        ("memory remove {memory} nothing", "error: the memory {memory} holds no document 'nothing'; nothing was"),
        ("memory remove {memory}", "error: no documents were named"),
        ("memory sync {memory} {data}/nowhere --encoder {encoder}", "error: there is no"),
        ("memory search {memory} --text fox --where a~1 --encoder {encoder}", "error: 'a~1' is no condition"),
        ("memory search {memory} --text fox --out {new}.txt --encoder {encoder}", "error: a picture cannot be written"),
        ("memory add {memory} --encoder {encoder}", "error: no documents were given"),
        ("memory add {memory} {data} --encoder {new}", "error: the encoder folder"),
        ("memory search {memory} --encoder {encoder}", "error: nothing to look for was given"),
        ("memory search {memory} --text= --encoder {encoder}", "error: the text is empty"),
        ("memory search {memory} --image {new} --encoder {encoder}", "error: there is no file"),
        ("memory search {new} --text fox --encoder {encoder}", "error: the memory {new} does not exist"),
        ("memory info {data}", "error: the memory {data} is no memory"),
        ("train encoder {data} --out {new} --set rate=1", "error: unknown key 'rate'"),
        ("train encoder {data} --out {new} --config {new}.toml", "error: there is no configuration file {new}.toml"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_made(
    arguments: str,
    printed: str,
    memory: Path,
    data: Path,
    encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"memory": memory, "data": data, "encoder": encoder, "new": tmp_path / "new"}
    assert cli.main([word.format(**places) for word in arguments.split()]) == 2
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown.startswith(printed.format(**places))
    assert list(tmp_path.iterdir()) == []


def test_a_memory_made_by_another_encoder_is_refused(
    memory: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_encoder(data, tmp_path, "loop.seed=1") == 0
    assert cli.main(["memory", "search", str(memory), "--text", "fox", "--encoder", str(tmp_path)]) == 2
    assert "was made by encoder" in capsys.readouterr().err


# From words to a picture and back, as a user types it


@pytest.fixture(scope="module")
def models(data: Path, encoder: Path, image_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models as RACM3.from_pretrained opens it."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "encoder").symlink_to(encoder)
    (folder / "image-tokenizer").symlink_to(image_tokenizer)
    run = ["train", "generator", str(data), "--out", str(folder / "generator")]
    run += ["--image-tokenizer", str(image_tokenizer), "--encoder", str(encoder)]
    assert cli.main([*run, "--set", "text_ids=270", *SHAPE.split(), "tokens_per_step=100", "loop.steps=1"]) == 0
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture of 40 x 20 px, of which the middle 20 x 20 are looked at."""
    file = tmp_path / "picture.png"
    Image(np.full((20, 40, 3), (255, 0, 0), np.uint8)).pil.save(file)
    return file


def run(command: str, **places: Path) -> int:
    return cli.main([word.format(**places) for word in shlex.split(command)])


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


def test_a_generator_goes_on_from_a_language_model(models: Path, data: Path, tmp_path: Path) -> None:
    """Whose folder is as a generator's own, without the facts of racm3."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "qwen3").mkdir(exist_ok=True)
        shutil.copy(models / "generator" / name, tmp_path / "qwen3")
    command = f"train generator {{data}} --image-tokenizer {{models}}/image-tokenizer --out {{out}} --set {SHAPE} "
    command += "init_from={qwen3} text_ids=0 retrieved_shares=[1] tokens_per_step=100 loop.steps=1"
    assert run(command, models=models, data=data, out=tmp_path / "out", qwen3=tmp_path / "qwen3") == 0
    written, given = (ModelFolder.around(folder) for folder in (tmp_path / "out", tmp_path / "qwen3"))
    assert written.text().fingerprint == given.text().fingerprint
    assert written.has_facts
    assert not given.has_facts


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("generate ' ' --out {new}.png", "error: the text is empty"),
        ("generate fox --out {new}", "error: a picture cannot be written as {new}; end its name with .png"),
        ("generate fox --out {picture}/a.png", "error: {picture}/a.png is a folder, or lies below a file"),
        ("generate fox --out {new}.png --models {new}", "error: there is no model folder {new}"),
        ("generate fox --out {new}.png --models {models} --memory {new}", "error: the memory {new} does not exist"),
        ("generate fox --out {new}.png --k -1", "error: k >= 0"),
        ("generate fox --out {new}.png --seed -1", "error: k >= 0, contexts >= 1, samples >= 1"),
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


def test_the_defaults_are_those_of_the_library() -> None:
    usual = Settings()
    for verb in (cli.generate, cli.infill):
        options = inspect.signature(verb).parameters
        assert (options["k"].default, options["samples"].default, options["seed"].default) == (
            (usual.k, usual.samples, usual.seed)
        )
    assert inspect.signature(cli.caption).parameters["k"].default == usual.k
