"""The page in a real browser, on a real server with the shipped models and a tiny memory: a person's day."""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.retriever.ingest import ingest
from racm3.scenes.world import World
from racm3.serve.app import create_app
from tests.serve.conftest import listening

pytest.importorskip("playwright", reason="the page is tested with playwright")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    BrowserContext,
    FilePayload,
    JSHandle,
    Locator,
    Page,
    Route,
    expect,
    sync_playwright,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium to open the page with", allow_module_level=True)

DOCUMENTS = 26  # more than a page of them
TABS = ("Draw", "Describe", "Edit", "Teach", "Memory", "Gallery")
SLOW_MS = 30_000  # on a busy machine
expect.set_options(timeout=SLOW_MS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RACM3:
    """The shipped models, with the first documents of the built-in world."""
    model = RACM3.from_pretrained("scenes")
    path = tmp_path_factory.mktemp("page") / "memory"
    model.memory = Memory.create(path, model.encoder.fingerprint, model.encoder.dimension)
    ingest(model.memory, model.encoder, islice(World(memory=1).items("memory"), DOCUMENTS))
    return model


@pytest.fixture(scope="module")
def origin(model: RACM3) -> Iterator[str]:
    """A server of them."""
    with listening(create_app(model, "racm3-scenes")) as (url, _):
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser, origin: str) -> Iterator[BrowserContext]:
    """A fresh browser; at the end no request has left the origin, and no script has failed."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    asked: list[str] = []
    failed: list[str] = []
    context.on("request", lambda request: asked.append(request.url))
    context.on("weberror", lambda error: failed.append(str(error.error)))
    context.set_default_timeout(SLOW_MS)
    yield context
    context.close()
    assert [url for url in asked if not url.startswith((origin, "data:", "blob:"))] == []
    assert failed == []


@pytest.fixture
def page(context: BrowserContext, origin: str) -> Page:
    page = context.new_page()
    page.goto(origin)
    expect(page.locator("#facts")).to_contain_text("documents")
    return page


def picture(colour: str, name: str) -> FilePayload:
    """A disc on white, as a file."""
    sheet = PIL.Image.new("RGB", (64, 64), "white")
    y, x = np.mgrid[:64, :64]
    sheet.paste(colour, mask=PIL.Image.fromarray((np.hypot(x - 32, y - 32) < 20).astype(np.uint8) * 255))
    kept = io.BytesIO()
    sheet.save(kept, "PNG")
    return FilePayload(name=name, mimeType="image/png", buffer=kept.getvalue())


WORDS = """a "red" disc, it's $5 `here` \\ <b>@0@</b>"""  # what shells, JSON and markup would trip over
RED, BLUE = picture("red", "red.png"), picture("blue", "it's blue.png")


def transfer_of(page: Page, files: Sequence[FilePayload]) -> JSHandle:
    """Files on their way, as from a folder or the clipboard."""
    data = [(one["name"], one["mimeType"], base64.b64encode(one["buffer"]).decode()) for one in files]
    return page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, data] of files) {
                const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
                transfer.items.add(new File([bytes], name, {type}));
            }
            return transfer;
        }""",
        data,
    )


def drop(place: Locator, files: Sequence[FilePayload]) -> None:
    place.dispatch_event("drop", {"dataTransfer": transfer_of(place.page, files)})


def panel(page: Page, tab: str) -> Locator:
    page.get_by_role("tab", name=tab).click()
    return page.get_by_role("tabpanel", name=tab)


def press(inside: Locator, name: str) -> None:
    inside.get_by_role("button", name=name, exact=True).click()


def finished(inside: Locator) -> Locator:
    """The output, when it is complete."""
    expect(inside.get_by_role("button", name="Stop", exact=True)).to_have_count(0)
    output = inside.get_by_role("article")
    expect(output.get_by_role("button", name="Same settings")).to_be_visible()
    return output


def copied(output: Locator, language: str) -> str:
    details = output.locator("details", has_text="Details and commands")
    details.evaluate("node => node.open = true")
    press(output, f"Copy as {language}")
    expect(details.get_by_role("status")).to_have_text(f"Copied as {language}.")
    return str(output.page.evaluate("navigator.clipboard.readText()"))


def run_curl(output: Locator, folder: Path) -> dict:
    command = ["bash", "-c", copied(output, "curl")]
    return json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)


def run_python(output: Locator, folder: Path) -> str:
    script = copied(output, "Python")
    environment = os.environ | {"no_proxy": "*"}
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def shown(figure: Locator) -> str:
    """The picture in a figure, in base64."""
    source = figure.locator("img").first.get_attribute("src")
    assert source is not None
    return source.removeprefix("data:image/png;base64,")


def pixels(data: str) -> np.ndarray:
    return np.array(PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


# The five tabs ----------------------------------------------------------------------------------------------------


def test_draw(page: Page, tmp_path: Path) -> None:
    draw = panel(page, "Draw")
    page.evaluate("""() => {
        window.rows = new Set();
        const look = () => document.querySelectorAll("#draw .made img").forEach(img => window.rows.add(img.src));
        const changes = {childList: true, subtree: true, attributeFilter: ["src"]};
        new MutationObserver(look).observe(document.querySelector("#draw .stage"), changes);
    }""")
    draw.get_by_role("textbox", name="Caption").fill(WORDS)
    seed = draw.get_by_label("Seed")
    draw.get_by_text("Settings", exact=True).click()
    seed.fill("-1")
    draw.get_by_text("Settings", exact=True).click()
    press(draw, "Draw")
    expect(seed).to_be_focused()  # what is wrong is shown, though it was folded away
    seed.fill("5")
    press(draw, "Draw")
    output = finished(draw)
    assert (
        page.evaluate("window.rows.size") >= 2
    )  # rows of codes as they come, several at a time where they are drafted
    expect(output.get_by_role("heading")).to_have_text(WORDS)
    made = output.locator("figure.made")
    drawn = shown(made)
    assert pixels(drawn).shape == (64, 64, 3)
    expect(output.locator("header")).to_contain_text("seed 5")
    expect(output.locator(".settings")).to_contain_text("k 2")
    expect(output.locator(".settings")).to_be_hidden()  # the technical lines are folded

    sources = output.get_by_role("list", name="Sources").get_by_role("listitem")
    expect(sources).to_have_count(2)
    for source in sources.all():
        expect(source).to_contain_text("% on this")
        expect(source.locator("img")).to_have_js_property("naturalWidth", 64)
    expect(output.get_by_text("The shares of all sources add up")).to_be_hidden()
    output.get_by_text("What “drew 41 % on this” means").click()
    expect(output.get_by_text("The shares of all sources add up")).to_be_visible()
    lit = output.locator(".lit")
    expect(lit).to_have_count(3)  # over the picture and its two sources
    page.mouse.move(0, 0)
    expect(lit.first).to_have_css("opacity", "0")
    output.get_by_role("switch", name="What came from where").check()
    for one in lit.all():
        expect(one).to_have_css("opacity", "1")

    output.get_by_role("radio", name="Without sources").check()
    slider = output.get_by_role("slider", name="Compare")
    expect(made.locator(".other")).to_have_css("clip-path", "inset(0px 0px 0px 50%)")
    slider.focus()
    slider.press("End")
    expect(made.locator(".other")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    assert made.locator(".other").get_attribute("src") != made.locator("img").first.get_attribute("src")
    output.get_by_role("radio", name="Alone").check()

    assert run_curl(output, tmp_path)["data"][0]["b64_json"] == drawn


def test_describe(page: Page, tmp_path: Path) -> None:
    describe = panel(page, "Describe")
    press(describe, "Describe")
    expect(describe.get_by_role("alert").first).to_have_text("Give a picture first.")
    drop(describe.locator(".drop"), [BLUE])
    press(describe, "Describe")
    output = finished(describe)
    words = output.locator(".made .words").first.inner_text().strip()
    assert words
    expect(describe.locator("form [role=status]")).to_contain_text("Done in")
    expect(output.get_by_role("list", name="Sources").get_by_role("listitem")).to_have_count(2)
    assert output.locator("mark").count() == len(words.split())
    output.get_by_role("radio", name="Without sources").check()
    expect(output.locator(".made .words")).to_have_count(2)

    (tmp_path / BLUE["name"]).write_bytes(BLUE["buffer"])
    assert run_python(output, tmp_path).strip() == words  # the same as the official client, and in a shell
    assert run_curl(output, tmp_path)["choices"][0]["message"]["content"] == words

    taken = describe.locator(".thumbs img")
    expect(taken).to_have_attribute("alt", BLUE["name"])
    page.set_viewport_size({"width": 1280, "height": 1400})  # a drag does not scroll
    output.locator(".source img").first.drag_to(describe.locator(".drop"))  # a picture of the page itself
    expect(taken).not_to_have_attribute("alt", BLUE["name"])
    paste = "files => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: files}))"
    page.evaluate(paste, transfer_of(page, [RED]))
    expect(taken).to_have_attribute("alt", RED["name"])
    press(describe, "Take red.png out")
    expect(taken).to_have_count(0)


def test_edit(page: Page, tmp_path: Path) -> None:
    edit = panel(page, "Edit")
    drop(edit.locator("#edit-picture"), [RED])
    expect(edit.locator(".easel img")).to_have_js_property("naturalWidth", 64)
    press(edit, "Fill")
    expect(edit.get_by_role("alert").first).to_have_text("Paint over what is to be made anew first.")
    mask = edit.get_by_label("Mask", exact=True)

    def drag(*points: tuple[float, float]) -> None:
        """Along points, given as shares of the picture."""
        mask.scroll_into_view_if_needed()
        at = mask.bounding_box()
        assert at is not None
        places = [(at["x"] + x * at["width"], at["y"] + y * at["height"]) for x, y in points]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place)
        page.mouse.up()

    said = edit.get_by_role("status").first
    drag((0.1, 0.5), (0.9, 0.5))  # with the brush, a quarter of the picture wide
    expect(said).to_contain_text("24 % of the picture")
    press(edit, "Undo")
    expect(said).to_contain_text("0 % of the picture")
    edit.get_by_text("Box", exact=True).click()
    drag((0, 0.5), (1, 1))
    expect(said).to_contain_text("50 % of the picture")
    mask.focus()  # the pen is at the middle: a box by keyboard, up to the top right
    for key in [" ", *["ArrowUp"] * 8, *["ArrowRight"] * 8, " "]:
        mask.press(key)
    expect(said).to_contain_text("75 % of the picture")
    mask.press("Control+z")
    expect(said).to_contain_text("50 % of the picture")

    edit.get_by_role("textbox", name="Words").fill(WORDS)
    drop(edit.locator("#edit-control"), [BLUE])
    press(edit, "Fill")
    output = finished(edit)
    made = pixels(shown(output.locator("figure.made").first))
    red = np.array(PIL.Image.open(io.BytesIO(RED["buffer"])))
    np.testing.assert_array_equal(made[:32], red[:32])
    assert not np.array_equal(made[32:], red[32:])
    (source,) = output.get_by_role("list", name="Sources").get_by_role("listitem").all()
    expect(source).to_contain_text("given by hand")

    for file in (RED, BLUE):
        (tmp_path / file["name"]).write_bytes(file["buffer"])
    with page.expect_download() as download:
        press(edit, "Save mask")
    download.value.save_as(tmp_path / "mask.png")
    run_python(output, tmp_path)
    np.testing.assert_array_equal(np.array(PIL.Image.open(tmp_path / "out.png").convert("RGB")), made)
    answer = run_curl(output, tmp_path)
    np.testing.assert_array_equal(pixels(answer["data"][0]["b64_json"]), made)

    output.get_by_role("button", name="Use this picture as…").click()  # what came is the next picture to change
    page.get_by_role("menuitem", name="Picture to change").click()
    expect(edit.locator(".easel img")).to_have_attribute(
        "alt", "The picture to change: a-red-disc-it-s-5-here-b-0-b.png"
    )
    expect(edit.locator("form [role=status]")).to_have_text("0 % of the picture will be made anew.")
    press(edit, "Fill")
    expect(edit.get_by_role("alert").first).to_contain_text("Paint over")


def test_teach(page: Page, tmp_path: Path) -> None:
    teach = panel(page, "Teach")
    for i, (label, example) in enumerate([("rouge", RED), ("azure", BLUE)]):
        teach.get_by_role("textbox", name="Label").nth(i).fill(label)
        drop(teach.get_by_role("group", name=f"Label {i + 1}").locator(".drop"), [example])
    drop(teach.locator("#teach-pictures"), [BLUE, RED])
    press(teach, "Classify")
    output = finished(teach)
    expect(output.get_by_role("list", name="Sources").get_by_role("listitem")).to_have_count(2)
    for file in (RED, BLUE):
        (tmp_path / file["name"]).write_bytes(file["buffer"])
    answer = ast.literal_eval(run_python(output, tmp_path))
    rows = [" ".join(row.inner_text().split()) for row in output.locator("li.row").all()]
    assert rows == [
        " ".join(f"{one['label']} {100 * one['probability']:.0f} %" for one in found["labels"])
        for found in answer["data"]
    ]

    press(teach, "Add a label")
    teach.get_by_role("textbox", name="Label").nth(2).fill("verte")
    press(teach, "Classify")
    expect(teach.get_by_role("alert").first).to_have_text("Give an example of verte first.")
    verte = teach.get_by_role("group", name="Label 3")
    drop(verte.locator(".drop"), [RED, BLUE])
    press(teach, "Classify")
    expect(teach.get_by_role("alert").first).to_contain_text("equally many")  # the server's own words
    press(verte, "Remove this label")
    press(teach, "Classify")
    expect(teach.get_by_role("navigation", name="Earlier").get_by_role("button")).to_have_count(2)


def test_memory(page: Page) -> None:
    memory = panel(page, "Memory")
    heading = memory.get_by_role("heading", name=f"of {DOCUMENTS} documents")
    documents = memory.locator(".document")
    expect(documents).to_have_count(24)
    press(memory, "Next")
    expect(heading).to_contain_text("25 to")
    press(memory, "Previous")
    expect(heading).to_contain_text("1 to 24")

    caption = "<img src=x onerror=alert(1)> & a crimson disc"
    drop(memory.locator("#add-pictures"), [RED, BLUE])
    memory.get_by_role("textbox", name="Caption of red.png").fill(caption)
    memory.get_by_role("textbox", name="Caption of it's blue.png").fill("a cobalt disc")
    press(memory, "Remember")
    expect(memory.locator("#add [role=status]")).to_have_text("2 added. The next request can find them.")
    expect(memory.locator(".pending .done")).to_have_count(2)  # what became of each
    expect(page.locator("#facts")).to_contain_text(f"{DOCUMENTS + 2} documents")
    expect(documents.first).to_contain_text(caption)  # newest first; as letters, not as markup
    memory.get_by_label("Order").select_option("oldest")
    expect(documents.first).not_to_contain_text("cobalt")

    drop(memory.locator("#search-picture"), [RED])
    expect(documents.first).to_contain_text(caption)
    expect(documents.first).to_contain_text("score")
    describe = panel(page, "Describe")  # the very next request retrieves it
    drop(describe.locator(".drop"), [BLUE])
    press(describe, "Describe")
    expect(finished(describe)).to_contain_text("a cobalt disc")

    panel(page, "Memory")
    press(memory, "Show all")
    memory.get_by_role("searchbox", name="Search").press_sequentially("a cobalt disc")  # found while it is typed
    expect(documents.first).to_contain_text("a cobalt disc")
    captions = [one.locator("p").first.inner_text() for one in documents.all()]
    memory.get_by_label("Order").select_option("caption")
    expect(memory.get_by_role("heading", name="by caption")).to_be_visible()
    shown_now = [one.locator("p").first.inner_text() for one in documents.all()]
    assert sorted(shown_now) == sorted(captions)
    memory.get_by_role("textbox", name="Filter").fill("license=none")
    expect(memory.get_by_role("heading", name="Nothing that fulfils the filter")).to_be_visible()
    memory.get_by_role("textbox", name="Filter").fill("")

    memory.get_by_role("button", name="What to do with a cobalt disc").click()
    page.get_by_role("menuitem", name="Edit caption").click()
    dialog = page.get_by_role("dialog", name="Edit caption")
    dialog.get_by_role("textbox", name="Caption").fill("a navy disc")
    press(dialog, "Keep")
    expect(page.locator("#notice")).to_contain_text("The caption is changed")
    expect(page.locator("#facts")).to_contain_text(f"{DOCUMENTS + 2} documents")
    for name in ("a navy disc", caption):
        memory.get_by_role("checkbox", name=f"Choose {name}", exact=True).check()
    with page.expect_download() as download:
        press(memory, "Export them")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        lines = [json.loads(line) for line in archive.read("metadata.jsonl").decode().splitlines()]
        assert {line["text"] for line in lines} == {"a navy disc", caption}
        assert all(PIL.Image.open(archive.open(line["file_name"])).size == (64, 64) for line in lines)
    memory.locator("#chosen").get_by_role("button", name="Delete").click()
    expect(page.locator("#facts")).to_contain_text(f"{DOCUMENTS} documents")
    press(page.locator("#notice"), "Undo")
    expect(page.locator("#facts")).to_contain_text(f"{DOCUMENTS + 2} documents")
    expect(page.locator("#notice")).to_contain_text("2 documents added again")
    for name in ("a navy disc", caption):
        memory.get_by_role("checkbox", name=f"Choose {name}", exact=True).check()
    memory.locator("#chosen").get_by_role("button", name="Delete").click()
    expect(page.locator("#facts")).to_contain_text(f"{DOCUMENTS} documents")
    press(memory, "Show all")
    expect(heading).to_contain_text(f"1 to 24 of {DOCUMENTS} documents")


# What lasts -------------------------------------------------------------------------------------------------------


def draw_now(page: Page, words: str, seed: int | None = None) -> Locator:
    """Draws with words; the output."""
    draw = panel(page, "Draw")
    draw.get_by_role("textbox", name="Caption").fill(words)
    if seed is not None:
        draw.locator("[data-settings]").evaluate("node => node.open = true")
        draw.get_by_label("Seed").fill(str(seed))
    press(draw, "Draw")
    expect(draw.locator("form [role=status]")).to_contain_text("Done in")
    return finished(draw)


def test_start(page: Page) -> None:
    """An example is there before anything is asked; three things to try, one press each; what is in the memory."""
    draw = panel(page, "Draw")
    example = draw.get_by_role("article")
    expect(example).to_contain_text("an example, drawn earlier")
    expect(example.locator("figure.made img")).to_have_js_property("naturalWidth", 64)
    expect(example.get_by_role("list", name="Sources").get_by_role("listitem")).to_have_count(2)
    expect(draw.get_by_role("heading", name=f"In the memory: {DOCUMENTS} documents")).to_be_visible()
    expect(draw.locator(".seen img")).to_have_count(6)
    tries = draw.locator(".tries").get_by_role("button")
    expect(tries).to_have_count(3)
    tries.nth(2).click()
    edit = page.get_by_role("tabpanel", name="Edit")
    expect(edit.locator("form [role=status]")).to_contain_text("25 % of the picture")
    panel(page, "Draw")
    tries.nth(1).click()
    expect(finished(page.get_by_role("tabpanel", name="Describe")).locator(".words")).not_to_be_empty()
    panel(page, "Draw")
    tries.nth(0).click()
    expect(finished(draw)).not_to_contain_text("an example")


def test_history(page: Page, tmp_path: Path) -> None:
    draw = panel(page, "Draw")
    first = draw_now(page, "a crimson disc", 5)
    expect(first.locator("header")).to_contain_text("seed 5")
    drawn = shown(first.locator("figure.made"))
    with page.expect_download() as download:
        press(first, "Save")
    saved = tmp_path / "saved.png"
    download.value.save_as(saved)
    with PIL.Image.open(saved) as picture_again:
        kept = json.loads(picture_again.text["racm3"])  # type: ignore[attr-defined]
        np.testing.assert_array_equal(np.array(picture_again.convert("RGB")), pixels(drawn))
    assert kept["request"]["body"]["prompt"] == "a crimson disc"
    assert kept["request"]["body"]["racm3"]["seed"] == 5

    earlier = draw.get_by_role("navigation", name="Earlier").get_by_role("button")
    seeds = {first.locator("header").inner_text()}
    for count in (2, 3):  # again, and again another one
        press(draw.get_by_role("article"), "Again")
        expect(earlier).to_have_count(count)
        seeds.add(finished(draw).locator("header").inner_text())
    assert len({text.split("seed ")[1].split()[0] for text in seeds}) == 3
    page.get_by_role("switch", name="Crisp pixels").uncheck()
    page.wait_for_function("() => kept.chosen('crisp').then(chosen => chosen === false)")

    page.reload()
    expect(page.get_by_role("tab", name="Draw")).to_have_attribute("aria-selected", "true")
    expect(earlier).to_have_count(3)
    expect(page.get_by_role("switch", name="Crisp pixels")).not_to_be_checked()
    expect(draw.locator("figure.made img")).to_have_css("image-rendering", "auto")
    earlier.nth(2).click()
    again = draw.get_by_role("article")
    expect(again.locator("header")).to_contain_text("seed 5")
    assert shown(again.locator("figure.made")) == drawn
    press(again, "Same settings")
    expect(draw.get_by_label("Seed")).to_have_value("5")
    expect(draw.get_by_role("button", name="Draw", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(earlier).to_have_count(4)
    assert shown(finished(draw).locator("figure.made")) == drawn

    gallery = panel(page, "Gallery")
    outputs = gallery.locator(".document")
    expect(outputs).to_have_count(4)
    with page.expect_download() as download:
        press(gallery, "Save all as zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            *(f"a-crimson-disc{n}.png" for n in ("-2", "-3", "-4", "")),
            "outputs.jsonl",
        ]
    gallery.get_by_role("searchbox", name="Find").fill("azure")
    expect(outputs).to_have_count(0)
    gallery.get_by_role("searchbox", name="Find").fill("CRIMSON")
    expect(outputs).to_have_count(4)
    outputs.first.get_by_role("button", name="What to do").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(outputs).to_have_count(3)
    press(page.locator("#notice"), "Undo")
    expect(outputs).to_have_count(4)

    files = [FilePayload(name="saved.png", mimeType="image/png", buffer=saved.read_bytes())]
    drop(page.locator("main"), files)  # anywhere: the request is back
    expect(page.locator("#notice")).to_contain_text("The request of saved.png is back in the form.")
    expect(draw.get_by_role("textbox", name="Caption")).to_have_value("a crimson disc")
    describe = panel(page, "Describe")
    drop(describe.locator(".drop"), files)  # as a picture, and its request on offer
    expect(describe.locator(".thumbs img")).to_have_count(1)
    press(page.locator("#notice"), "Use the request")
    expect(draw).to_be_visible()
    drop(page.locator("main"), [RED])
    expect(page.locator("#notice")).to_contain_text("red.png carries no request")


def test_address(page: Page, origin: str) -> None:
    """A link reproduces a request, and the back button stays in the page."""
    output = draw_now(page, "a disc & more", 7)
    press(output, "Copy link")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{origin}/#draw?")
    drawn = shown(output.locator("figure.made"))
    panel(page, "Memory")
    panel(page, "Gallery")
    page.go_back()
    expect(page.get_by_role("tabpanel", name="Memory")).to_be_visible()
    page.go_back()
    draw = page.get_by_role("tabpanel", name="Draw")
    expect(draw).to_be_visible()
    draw.locator(".made img").click()
    viewer = page.get_by_role("dialog", name="Enlarged picture")
    expect(viewer.locator("img")).to_have_js_property("naturalWidth", 64)
    wide = viewer.locator("img").evaluate("node => node.clientWidth")
    page.keyboard.press("+")
    assert viewer.locator("img").evaluate("node => node.clientWidth") > 1.4 * wide
    page.go_back()
    expect(viewer).to_be_hidden()
    expect(draw).to_be_visible()

    other = page.context.new_page()
    other.goto(link)
    draw = other.get_by_role("tabpanel", name="Draw")
    expect(draw.get_by_role("textbox", name="Caption")).to_have_value("a disc & more")
    expect(draw.get_by_role("button", name="Draw", exact=True)).to_be_focused()  # asks nothing by itself
    other.keyboard.press("Enter")
    expect(draw.locator("form [role=status]")).to_contain_text("Done in")
    assert shown(finished(draw).locator("figure.made")) == drawn


def test_progress(page: Page) -> None:
    """How far it is, and how many are ahead."""
    said = page.evaluate_handle("""() => {
        const said = [], bar = document.querySelector("#draw progress"), words = bar.nextSibling;
        new MutationObserver(() => said.push(words.textContent)).observe(words, {childList: true});
        return said;
    }""")
    draw_now(page, "a disc")
    shares = [int(text.split()[0]) for text in said.json_value() if text.endswith(" %")]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 100  # drafted codes may end a picture in one go

    waits = ": 2 ahead\n\n: 0 ahead\n\n"
    page.route("**/v1/images/generations", lambda route: route.fulfill(body=waits, content_type="text/event-stream"))
    draw = panel(page, "Draw")
    press(draw, "Draw")
    expect(draw.locator("form").get_by_role("alert")).to_contain_text("The answer broke off")
    assert [text for text in said.json_value() if "queue" in text] == ["2 ahead in the queue", "Next in the queue"]
    page.unroute("**/v1/images/generations")
    page.route("**/v1/images/generations", lambda route: None)  # waits
    press(draw, "Draw")
    press(draw, "Stop")
    expect(draw.get_by_role("progressbar")).to_be_hidden()


def test_frame_and_mask(page: Page) -> None:
    """Nothing of a picture is cut silently; a mask is undone, redone, turned round, and has a soft edge."""
    edit = panel(page, "Edit")
    sheet = PIL.Image.new("RGB", (600, 300), "navy")
    sheet.paste("orange", (300, 0, 600, 300))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    drop(edit.locator("#edit-picture"), [FilePayload(name="wide.png", mimeType="image/png", buffer=file.getvalue())])
    expect(edit.locator(".cut")).to_contain_text("300 × 300 of 600 × 300 pixels")
    mask, easel = edit.get_by_label("Mask", exact=True), edit.locator(".easel img")
    inside, whole = mask.bounding_box(), easel.bounding_box()
    assert inside is not None
    assert whole is not None
    assert inside["width"] == pytest.approx(whole["width"] / 2, abs=2)
    frame = edit.get_by_label("Frame, from left to right")
    frame.focus()
    frame.press("End")
    moved = mask.bounding_box()
    assert moved is not None
    assert moved["x"] + moved["width"] == pytest.approx(whole["x"] + whole["width"], abs=2)

    said = edit.locator("form [role=status]")
    edit.get_by_text("Box", exact=True).click()
    for key in [" ", *["ArrowUp"] * 8, *["ArrowRight"] * 8, " "]:  # the top right quarter
        mask.press(key)
    expect(said).to_contain_text("25 % of the picture")
    press(edit, "Invert")
    expect(said).to_contain_text("75 % of the picture")
    press(edit, "Undo")
    expect(said).to_contain_text("25 % of the picture")
    mask.press("Control+y")
    expect(said).to_contain_text("75 % of the picture")
    press(edit, "Undo")
    press(edit, "Clear")
    expect(said).to_contain_text("0 % of the picture")
    press(edit, "Undo")
    edit.get_by_label("Feather").fill("6")
    size = edit.get_by_label("Size of brush and eraser")
    before = size.input_value()
    mask.press("]")
    assert int(size.input_value()) == int(before) + 5
    press(edit, "Fill")
    expect(said).to_contain_text("Done in")
    output = finished(edit)
    made = pixels(shown(output.locator("figure.made")))
    assert (abs(made[40:, :24].astype(int) - (255, 165, 0)).max(axis=2) <= 3).all()  # the right half, scaled; kept
    output.get_by_role("radio", name="Before").check()
    expect(output.get_by_role("slider", name="Compare")).to_be_visible()
    press(output, "Same settings")
    expect(said).to_contain_text("of the picture will be made anew")


def test_folder(page: Page, model: RACM3, tmp_path: Path) -> None:
    """A folder with captions; what became of each file; a picture taken out while others are sent is not remembered."""
    memory = panel(page, "Memory")
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    names = {"a.png": "teal", "more/b.png": "olive", "more/c.png": "maroon", "d.png": "pink"}
    for name, colour in names.items():
        (folder / name).write_bytes(picture(colour, name)["buffer"])
    (folder / "a.txt").write_text("a teal disc")
    (folder / "more" / "metadata.jsonl").write_text(
        '{"file_name": "b.png", "text": "an olive disc", "license": "CC0"}\n'
    )
    (folder / "notes.csv").write_text("1,2")
    (folder / "bad.png").write_bytes(b"no picture")
    memory.locator("#adding").evaluate("node => node.open = true")
    memory.locator("[name=folder]").set_input_files(folder)
    rows = memory.locator(".pending li")
    expect(rows).to_have_count(5)
    expect(memory.locator("#add [role=status]")).to_contain_text("no pictures: pictures/notes.csv")
    expect(memory.get_by_role("textbox", name="Caption of pictures/a.png")).to_have_value("a teal disc")
    expect(memory.get_by_role("textbox", name="Caption of pictures/more/b.png")).to_have_value("an olive disc")
    press(memory, "Captions from file names")
    expect(memory.get_by_role("textbox", name="Caption of pictures/d.png")).to_have_value("d")

    held: list[Route] = []
    page.route("**/v1/memory/documents", lambda route: held.append(route))
    before = page.evaluate("server.documents")
    press(memory, "Remember")
    for wanted in range(1, 6):
        while len(held) < wanted:
            page.wait_for_timeout(20)
        if wanted == 1:  # one on its way, and one that waits
            first = rows.first.locator("img").get_attribute("alt")
            press(memory, f"Take {first} out")
            press(memory, "Take pictures/d.png out")
            held[0].continue_()
            expect(rows).to_have_count(3)
            break
    page.unroute("**/v1/memory/documents")
    for route in held[1:]:
        route.continue_()
    expect(memory.locator("#add [role=status]")).to_contain_text("added")
    expect(memory.locator(".pending .failed")).to_have_count(1)
    expect(memory.locator(".pending .failed")).to_contain_text("is not a picture")
    added = page.evaluate("server.documents") - before
    captions = {
        document["text"]
        for document in page.evaluate("fetch('/v1/memory/documents?limit=100').then(a => a.json()).then(a => a.data)")
    }
    assert "d" not in captions
    assert added == memory.locator(".pending .done").count()
    assert first is not None
    for text in ("a teal disc", "an olive disc", "c", "d"):
        for found in page.evaluate("fetch('/v1/memory/documents?limit=100').then(a => a.json()).then(a => a.data)"):
            if found["text"] == text:
                page.evaluate("id => deleteDocument(id)", found["id"])


# What goes wrong --------------------------------------------------------------------------------------------------


def test_what_the_server_refuses_is_said(page: Page) -> None:
    answer = {"error": {"message": "the queue is full", "type": "rate_limit_error", "param": None, "code": None}}
    busy = {"status": 429, "headers": {"Retry-After": "7"}, "json": answer}
    answers: list[Callable[[Route], None]] = [lambda route: route.fulfill(**busy)]
    page.route("**/v1/images/generations", lambda route: answers[-1](route))  # one route: changing it would race
    draw = panel(page, "Draw")
    said = draw.locator("form").get_by_role("alert")  # an output that has begun has an alert of its own
    draw.get_by_role("textbox", name="Caption").fill("a disc")
    press(draw, "Draw")
    expect(said).to_have_text("the queue is full (Try again in 7 s.)")
    expect(draw.get_by_role("article")).to_contain_text("an example")  # what was shown before

    broken = f"event: error\ndata: {json.dumps(answer)}\n\n"
    answers.append(lambda route: route.fulfill(body=broken, content_type="text/event-stream"))
    press(draw, "Draw")
    expect(said).to_have_text("the queue is full")

    answers.append(lambda route: route.abort())
    press(draw, "Draw")
    expect(said).to_contain_text("does not answer")
    drop(panel(page, "Describe").locator(".drop"), [FilePayload(name="a.txt", mimeType="text/plain", buffer=b"a")])
    expect(page.get_by_text("a.txt is not a picture.")).to_be_visible()


def test_a_stream_that_breaks_is_said(page: Page, model: RACM3, monkeypatch: pytest.MonkeyPatch) -> None:
    step, left = model.engine.step, iter(range(5))  # a few rows of a picture

    def failing() -> object:
        if next(left, None) is None:
            raise RuntimeError("a fault of the test's")
        return step()

    monkeypatch.setattr(model.engine, "step", failing)
    draw = panel(page, "Draw")
    draw.get_by_role("textbox", name="Caption").fill("a disc")
    press(draw, "Draw")
    expect(draw.locator("form").get_by_role("alert")).to_have_text("the server failed; its log says why")
    expect(draw.get_by_role("article")).to_contain_text("an example")  # what was shown before
    monkeypatch.undo()
    press(draw, "Draw")
    finished(draw)
    expect(draw.locator("form").get_by_role("alert")).to_have_text("")


def test_stop(page: Page) -> None:
    page.route("**/v1/images/generations", lambda route: None)  # never answered
    draw = panel(page, "Draw")
    draw.get_by_role("textbox", name="Caption").fill("a disc")
    press(draw, "Draw")
    press(draw, "Stop")
    expect(draw.get_by_role("status").first).to_have_text("Stopped.")
    expect(draw.get_by_role("button", name="Draw", exact=True)).to_be_visible()


def test_a_token_is_asked_for_and_sent(context: BrowserContext, origin: str) -> None:
    refusal = {"message": "the token is wrong", "type": "invalid_request_error", "param": None, "code": None}

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": refusal})

    page = context.new_page()
    page.route("**/v1/**", guard)
    page.goto(f"{origin}/#memory")
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    for token in ("a wrong one", "open sesame"):
        dialog.get_by_label("Token").fill(token)
        dialog.get_by_label("Token").press("Enter")
        if token == "a wrong one":
            expect(dialog.get_by_role("alert")).to_have_text("the token is wrong")
    expect(page.locator("#facts")).to_contain_text("documents")
    expect(page.locator(".document img").first).to_have_js_property("naturalWidth", 64)
    assert page.evaluate("sessionStorage.getItem('token')") == "open sesame"
    assert page.evaluate("localStorage.length") == 0


# For everyone -----------------------------------------------------------------------------------------------------

USED = {"button", "textbox", "searchbox", "checkbox", "switch", "radio", "spinbutton", "slider", "tab", "tabpanel"}
NAMED = USED | {"dialog", "img", "image", "application", "radiogroup", "navigation", "article"}

CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => numbers(colour).slice(0, 3).map(c => c / 255)
        .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const ground = node => {
        const colour = getComputedStyle(node).backgroundColor;
        return (numbers(colour)[3] ?? 1) > 0 ? colour : ground(node.parentElement);
    };
    const texts = [...document.querySelectorAll("body *")].filter(node => node.checkVisibility() && !node.disabled
        && [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
    return texts.map(node => {
        const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
        return [node.textContent.trim().slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_can_be_read_and_reached(browser: Browser, origin: str, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 360, "height": 640})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(origin)
    expect(page.locator("#facts")).to_contain_text("documents")
    expect(page.locator("#start .seen li").first).to_be_visible()  # all that comes later is looked at as well
    devtools = context.new_cdp_session(page)
    page.get_by_role("tab", name="Draw").focus()
    for tab in TABS:
        expect(page.get_by_role("tab", name=tab)).to_be_focused()
        expect(page.get_by_role("tabpanel")).to_have_count(1)
        if tab == "Edit":
            drop(page.locator("#edit-picture"), [RED])
            expect(page.get_by_label("Mask", exact=True)).to_be_visible()
        if tab == "Memory":
            expect(page.locator(".document").first).to_be_visible()
        for settings in page.locator("summary:visible").all():
            settings.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, f"{tab} is wider than a phone"
        tree = devtools.send("Accessibility.getFullAXTree")["nodes"]
        found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
        assert {role for role, _ in found} & USED
        assert [role for role, name in found if role in NAMED and not name] == []
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 5
        assert [text for text in contrasts if text[1] < 4.5] == []  # WCAG 2.2, level AA
        broken = Axe().run(page).response["violations"]
        assert [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in broken] == [], tab
        page.get_by_role("tab", name=tab).press("ArrowRight")
    expect(page.get_by_role("tab", name="Draw")).to_be_focused()  # round again
    context.close()
