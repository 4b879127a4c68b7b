"""Take the pictures of the page in docs/screens: ``python docs/make_screenshots.py``, with `racm3 serve` running.

Does in every tab what a person would do there. What it drops and adds are pictures of the server's own memory; it
deletes none and leaves none behind. With ``--example`` it makes the example that the page shows at its first start.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright

SCREENS = Path(__file__).parent / "screens"
EXAMPLE = Path(__file__).parent.parent / "racm3" / "serve" / "page" / "example.json"
DESK, PHONE = (1000, 640), (390, 700)  # px
CAPTION = "a castle at the top left of a beach"
SEED = 7
COLOURS = 256  # a picture: half the bytes of all of them
SLOW_MS = 120_000


class Server:
    """A running server, and the documents of its memory."""

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.origin + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def pictures(self, words: str, count: int = 1) -> list[FilePayload]:
        """Pictures of the memory, nearest to the words first."""
        found = self.ask("/v1/memory/search", {"text": words, "limit": count})["data"]
        return [self._file(document) for document in found]

    def _file(self, document: dict[str, Any]) -> FilePayload:
        with urllib.request.urlopen(self.origin + document["image"]) as answer:
            return FilePayload(name=f"{document['text']}.png", mimeType="image/png", buffer=answer.read())


@contextmanager
def opened(browser: Browser, server: Server, tab: str, scheme: Any, size: tuple[int, int]) -> Iterator[Page]:
    """A tab of the page, in which it is photographed at the end."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(SLOW_MS)
    page.goto(f"{server.origin}/#{tab}")
    yield page
    page.wait_for_load_state("networkidle")
    file = SCREENS / f"{tab}-{scheme}{'-phone' if size == PHONE else ''}.png"
    taken = PIL.Image.open(io.BytesIO(page.screenshot(full_page=tab != "memory", animations="disabled")))
    taken.convert("RGB").quantize(COLOURS).save(file, optimize=True)
    context.close()
    print(file.name, f"{file.stat().st_size / 1000:.0f} kB")


def choose(page: Page, place: str, files: Sequence[FilePayload]) -> None:
    page.locator(f"{place} input[type=file]").set_input_files(list(files))


def ask(page: Page, tab: str, button: str) -> None:
    page.locator(f"#{tab}").get_by_role("button", name=button, exact=True).click()
    page.locator(f"#{tab} form").get_by_text("Done in").wait_for()
    page.locator(f"#{tab} article .source").first.wait_for()


def draw(page: Page) -> None:
    page.locator("#facts").get_by_text("px").wait_for()
    page.get_by_role("textbox", name="Caption").fill(CAPTION)
    page.locator("#draw [data-settings]").evaluate("node => node.open = true")
    page.locator("#draw").get_by_label("Seed").fill(str(SEED))
    page.locator("#draw [data-settings]").evaluate("node => node.open = false")
    ask(page, "draw", "Draw")


def describe(page: Page, server: Server) -> None:
    choose(page, "#describe .drop", server.pictures("a fox in the snow"))
    ask(page, "describe", "Describe")
    page.locator("#describe").get_by_role("switch", name="What came from where").check()


def edit(page: Page, server: Server) -> None:
    choose(page, "#edit-picture", server.pictures("a fox in the snow"))
    choose(page, "#edit-control", server.pictures("a castle"))
    page.get_by_role("radio", name="Box").check()
    page.locator("#edit canvas").scroll_into_view_if_needed()
    box = page.locator("#edit canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.8 * box["height"])
    page.mouse.up()
    ask(page, "edit", "Fill")


def teach(page: Page, server: Server) -> None:
    for i, label in enumerate(["owl", "castle"]):
        page.get_by_role("textbox", name="Label").nth(i).fill(label)
        choose(page, f".labels > li:nth-child({i + 1}) .drop", server.pictures(f"an {label}"))
    choose(page, "#teach-pictures", [server.pictures(f"an {label}", 2)[1] for label in ("owl", "castle")])
    ask(page, "teach", "Classify")


def search(page: Page) -> None:
    page.locator("#search").get_by_role("searchbox", name="Search").fill("a flag of Japan on a beach")
    page.get_by_text("best first", exact=False).locator("visible=true").last.wait_for()


def gallery(page: Page, server: Server) -> None:
    page.get_by_role("tab", name="Draw").click()
    draw(page)
    for words in ("a fox in the snow", "an owl on a red background", "a castle on a beach"):
        page.get_by_role("textbox", name="Caption").fill(words)
        ask(page, "draw", "Draw")
    page.get_by_role("tab", name="Describe").click()
    describe(page, server)
    page.get_by_role("tab", name="Gallery").click()
    page.locator("#gallery .document").nth(4).wait_for()


def make_example(page: Page) -> None:
    """Draw the example of the start screen, with its sources and what comes without them."""
    draw(page)
    page.get_by_role("radio", name="Without sources").check()
    page.locator(".compare").wait_for()
    text = page.evaluate(
        "() => { const {id, at, ...rest} = stages.draw.record; return pack({...rest, at: 0, example: server.model}); }"
    )
    EXAMPLE.write_text(text.replace("<", "\\u003c") + "\n", encoding="utf-8")  # it lies in a script element


def main(origin: str, chromium: str, example: bool) -> None:
    server = Server(origin)
    SCREENS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        if example:
            with opened(browser, server, "draw", "light", DESK) as page:
                make_example(page)
        with opened(browser, server, "draw", "light", DESK) as page:
            draw(page)
            page.get_by_role("radio", name="Without sources").check()
            page.locator(".compare").wait_for()
        with opened(browser, server, "describe", "dark", DESK) as page:
            describe(page, server)
        with opened(browser, server, "edit", "light", DESK) as page:
            edit(page, server)
        with opened(browser, server, "teach", "dark", DESK) as page:
            teach(page, server)
        with opened(browser, server, "memory", "light", DESK) as page:
            search(page)
        with opened(browser, server, "gallery", "light", DESK) as page:
            gallery(page, server)
        with opened(browser, server, "draw", "dark", PHONE) as page:
            draw(page)
        with opened(browser, server, "memory", "light", PHONE) as page:
            search(page)
        browser.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--origin", default="http://127.0.0.1:8000", help="where `racm3 serve` is")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    parser.add_argument("--example", action="store_true", help="make the example of the start screen anew")
    given = parser.parse_args()
    main(given.origin, given.chromium, given.example)
