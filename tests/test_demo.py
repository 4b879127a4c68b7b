"""The demo, whole, with tiny models that have learnt next to nothing."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3 import cli, demo
from racm3.data import Item, write_coco
from racm3.document import Document, Hole, Image
from racm3.errors import CheckpointError, InputError, MemoryStoreError
from racm3.generator.sampling import Sampling
from racm3.memory.memory import Memory
from racm3.pipeline import Settings
from racm3.retriever.retriever import Hit
from racm3.scenes.world import World

ENCODER = "dimension=8 vision_width=32 vision_layers=1 text_width=32 text_layers=1 image_size_px=16 patch_px=8"
TOKENIZER = "model.encoder_width=8 model.decoder_width=16 model.image_size_px=32 batch_size=4"
SHAPE = "model.width=16 model.layers=1 model.heads=2 model.kv_heads=2 model.head_dim=8 model.mlp_width=16"
GENERATOR = f"{SHAPE} compile=false"  # which would take longer than everything else here
WORLD = World(memory=1, tests=8)
ROWS = 2 * sum(demo.FROM_EACH_SPLIT.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four models, each trained for a moment on a few scenes."""
    folder = tmp_path_factory.mktemp("models")
    data = str(write_coco(islice(WORLD.items("train"), 8), folder / "data").parent)

    def train(verb: str, name: str, *more: str) -> None:
        assert cli.main(["train", verb, data, "--out", str(folder / name), *more, "loop.steps=1"]) == 0

    train("image-tokenizer", "image-tokenizer", "--set", *TOKENIZER.split())
    train("encoder", "encoder", "--set", "text_ids=300", *ENCODER.split(), "batch_size=4")
    common = ["--image-tokenizer", str(folder / "image-tokenizer")]
    settings = ["--set", "text_ids=300", *GENERATOR.split(), "tokens_per_step=100"]
    train("generator", "generator", *common, "--encoder", str(folder / "encoder"), *settings)
    train("generator", "vanilla", *common, *settings, "retrieved_shares=[1]")
    return folder


@pytest.fixture(scope="module")
def made(models: Path, tmp_path_factory: pytest.TempPathFactory) -> demo.Demo:
    settings = Settings(text=Sampling(temperature=0.0), max_text_tokens=8, seed=3)
    return demo.demo(tmp_path_factory.mktemp("demo"), models, WORLD, settings)


class Page(HTMLParser):
    """The tags that a page opens, in order, and those that it leaves open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.unclosed: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.unclosed.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.opened if name == tag]


def test_the_page_has_every_section(made: demo.Demo) -> None:
    text = made.page.read_text(encoding="utf-8")
    page = Page(text)
    assert page.unclosed == []
    assert len(page.all("article")) == ROWS
    for task in demo.TASKS:
        assert f"<h2>{task.capitalize()}</h2>" in text
    assert text.count(f'<span class="novel">{demo.UNSEEN}</span>') == 1 + ROWS // 2  # once to explain it
    assert text.count("<b>racm3</b>") == text.count("<b>vanilla</b>") == text.count("<b>true</b>") == ROWS
    assert "count as pretrained" in text
    assert "nothing is picked by hand" in text.lower()
    assert '"seed": 3' in text


def test_the_page_needs_nothing_else(made: demo.Demo) -> None:
    page = Page(made.page.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("link")
    assert {source["src"].partition(",")[0] for source in page.all("img")} == {"data:image/png;base64"}


def test_its_pictures_decode(made: demo.Demo) -> None:
    page = Page(made.page.read_text(encoding="utf-8"))
    sizes = [Image.open(base64.b64decode(source["src"].partition(",")[2])).pixels.shape for source in page.all("img")]
    assert set(sizes) <= {(64, 64, 3), (32, 32, 3)}
    assert len(sizes) == sum(cell.image is not None for row in made.rows for cell in (*row.cells, *row.sources))


def test_the_sheet_opens(made: demo.Demo) -> None:
    with PIL.Image.open(made.sheet) as sheet:
        assert sheet.width > 7 * demo.TILE_PX
        assert sheet.height > ROWS * demo.TILE_PX


def test_half_of_the_requests_were_never_seen(made: demo.Demo) -> None:
    novel = set(WORLD.novel)
    for row in made.rows:
        assert (row.request.truth.metadata["scene"]["entities"][0] in novel) == row.request.novel
        assert row.request.truth.id.startswith("test-novel" if row.request.novel else "test-seen")
    assert sum(row.request.novel for row in made.rows) == ROWS // 2


def test_nothing_is_picked(made: demo.Demo) -> None:
    asked = [row.request.truth.id for row in made.rows]
    for split in ("test-seen", "test-novel"):
        assert [id_ for id_ in asked if id_.startswith(split)] == [f"{split}-{i:04d}" for i in range(ROWS // 2)]


def test_the_memory_is_the_whole_one(made: demo.Demo) -> None:
    assert list(Memory.open(made.memory).ids) == [id_ for id_, _, _ in WORLD.scenes("memory")]


def test_vanilla_has_no_sources(made: demo.Demo) -> None:
    assert all(row.answer.sources and not row.vanilla.sources for row in made.rows)


def test_a_request_does_not_hold_its_answer(made: demo.Demo) -> None:
    for row in made.rows:
        holes = [row.request.asked.parts[i] for i in row.request.asked.holes]
        if row.request.task == demo.PICTURE_TO_WORDS:
            assert holes == [Hole("text")]
            assert row.request.asked.text is None
        elif row.request.task == demo.WORDS_TO_PICTURE:
            assert holes == [Hole("image")]
            assert not row.request.asked.images


def test_a_region_keeps_what_is_around_it(made: demo.Demo) -> None:
    rows = [row for row in made.rows if row.request.task == demo.HIDDEN_REGION]
    hidden_px = [int(row.request.asked.images[0].mask.sum()) for row in rows]
    assert hidden_px == [40 * 40, 24 * 40] * 2
    for row in rows:
        given = row.request.asked.images[0].resized(32)
        outside = ~given.mask.reshape(4, 8, 4, 8).any(axis=(1, 3)).repeat(8, 0).repeat(8, 1)
        assert np.array_equal(row.answer.document.images[0].pixels[outside], given.pixels[outside])


def test_words_are_escaped(made: demo.Demo) -> None:
    shown = demo._figure(demo.Cell("asked", Image(np.zeros((2, 2, 3), np.uint8)), '<b> & "'))
    assert "<b> &" not in shown
    assert shown.count("&lt;b&gt; &amp; &quot;") == 2


def test_the_command_prints_sources_and_files(
    made: demo.Demo, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = demo.demo
    monkeypatch.setattr(demo, "demo", lambda out, models, settings: whole(out, models, WORLD, settings))
    shutil.copytree(made.page.parent, tmp_path, dirs_exist_ok=True)  # an earlier demo, which is replaced
    assert cli.main(["demo", "--out", str(tmp_path), "--models", str(models)]) == 0
    printed = capsys.readouterr()
    assert (tmp_path / "index.html").read_bytes() != made.page.read_bytes()
    lines = printed.out.splitlines()
    assert sum(demo.UNSEEN in line for line in lines) == ROWS // 2
    assert sum(bool(re.fullmatch(r"  -?\d\.\d{3}  \S+  .+  racm3\.scenes", line)) for line in lines) >= ROWS
    assert lines[-1].endswith(f"the page to {tmp_path / 'index.html'}")
    assert "memory: documents" in printed.err


def test_what_the_user_has_is_not_deleted(models: Path, tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "diary.txt").write_text("dear diary")
    with pytest.raises(MemoryStoreError, match="is no memory"):
        demo.demo(tmp_path, models, WORLD)
    with pytest.raises(InputError, match="is a file"):
        demo.demo(tmp_path / "memory" / "diary.txt", models, WORLD)
    assert (tmp_path / "memory" / "diary.txt").read_text() == "dear diary"


def test_documents_that_a_user_added_to_the_demos_memory_stay(made: demo.Demo, models: Path, tmp_path: Path) -> None:
    shutil.copytree(made.memory, tmp_path / "memory")
    memory = Memory.open(tmp_path / "memory")
    memory.add([Item("mine", Document.of("my fox"), {}, "")], memory.vectors[:1])
    with pytest.raises(MemoryStoreError, match="holds 1 documents that are not the demo's, such as 'mine'; give anot"):
        demo.demo(tmp_path, models, WORLD)
    assert "mine" in Memory.open(tmp_path / "memory").ids


def test_a_source_is_one_line() -> None:
    hit = Hit("a\n\u202eb", 0.5, Document.of("two\nlines"), {}, "here\x1b[2J")
    assert demo.source_line(hit) == r"0.500  a\n\u202eb  two\nlines  here\x1b[2J"


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        demo.demo(tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()
