"""Pictures from outside: bombs, what is no picture, and URLs that lead where they should not."""

from __future__ import annotations

import http.server
import io
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest

from racm3.document import Image
from racm3.errors import ImageError
from racm3.serve import picture_input as pictures
from tests.serve.conftest import data_url
from tests.test_pipeline import masked, picture

MOST = 64 * 64


def read(data: bytes) -> Image:
    pictures.pixels_of(data, MOST, "image")
    return pictures.opened(data, "image")


def asked(url: str) -> Image:
    return read(pictures.data_of(url, "image") if pictures.is_data(url) else pictures.fetch(url, 10**6, (), "image"))


def test_a_data_url_is_its_picture() -> None:
    assert asked(data_url(picture(1))) == picture(1)


def bomb(side: int) -> bytes:
    """A PNG of ``side`` x ``side`` grey pixels in a few bytes."""
    buffer = io.BytesIO()
    PIL.Image.new("L", (1, 1)).save(buffer, format="PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bomb(65), "65 x 65 pixels; at most 4,096"),
        (bomb(100_000), "pixel|not a picture"),
        (b"", "not a picture"),
        (b"%!PS-Adobe-3.0", "not a picture"),
        (picture(1).png()[:-40], "cannot be read"),
    ],
)
def test_what_is_no_picture_that_may_be_read(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read(data)


@pytest.mark.parametrize(
    "url", ["data:image/png,x", "data:image/png;base64,x", "data:;base64", "file:///etc/passwd", "x:", "http://[::1"]
)
def test_urls_of_no_picture(url: str) -> None:
    with pytest.raises(ImageError):
        asked(url)


class Elsewhere(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302 if self.path == "/away" else 200)
        self.send_header("Location", "http://169.254.169.254/")
        self.end_headers()
        self.wfile.write(picture(1).png() if self.path == "/fox.png?a=1" else b"x" * 20_000)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A host that may be asked, without its TLS."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(pictures, "_connect", lambda host: socket.create_connection(server.server_address[:2]))
        Elsewhere.asked.clear()
        yield Elsewhere.asked
        server.shutdown()


def test_only_named_hosts_are_asked(elsewhere: list[str]) -> None:
    def get(url: str) -> Image:
        return pictures.opened(pictures.fetch(url, 10_000, {"pictures.example"}, "image"), "image")

    assert get("https://pictures.example/fox.png?a=1") == picture(1)
    elsewhere.clear()
    for url in (
        "http://pictures.example/fox.png",
        "https://evil.example/",
        "https://pictures.example.evil.example/",
        "https://pictures.example:22/",
        "https://user@pictures.example/",
        "https://pictures.example@evil.example/",
        "ftp://pictures.example/",
    ):
        with pytest.raises(ImageError, match="only https URLs of pictures.example"):
            get(url)
    assert elsewhere == []
    with pytest.raises(ImageError, match="redirects are not followed"):
        get("https://pictures.example/away")
    with pytest.raises(ImageError, match="more than 10,000 bytes"):
        get("https://pictures.example/large")
    with pytest.raises(ImageError, match="cannot be fetched"):
        get("https://pictures.example/a b\r\nHost: x")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "0.0.0.0", "fd00::1"])
def test_a_named_host_that_leads_inside_is_not_asked(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(None, None, None, None, (address, 443))])
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(ImageError, match="not a public address"):
        pictures.fetch("https://pictures.example/", 10_000, {"pictures.example"}, "image")


def clear_where(mask: np.ndarray, pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    alpha = np.where(mask, 0, 255).astype(np.uint8)
    PIL.Image.fromarray(np.dstack([pixels, alpha])).save(buffer, format="PNG")
    return buffer.getvalue()


def test_masks() -> None:
    hole = masked(picture(8), slice(8, 24), slice(0, 16))
    assert hole.mask is not None
    white = Image(np.repeat(np.where(hole.mask, 255, 0).astype(np.uint8)[..., None], 3, 2))
    assert pictures.with_mask(hole.png(), white.png()) == hole
    assert pictures.with_mask(hole.png(), clear_where(hole.mask, white.pixels * 0)) == hole
    own = pictures.with_mask(clear_where(hole.mask, hole.pixels), None)
    assert own.mask is not None
    assert (own.mask == hole.mask).all()
    with pytest.raises(ImageError, match="the picture hides nothing"):
        pictures.with_mask(hole.png(), None)
    with pytest.raises(ImageError, match="the mask is 16 x 8 px, the picture 32 x 32"):
        pictures.with_mask(hole.png(), Image(picture(1, 16).pixels[:8]).png())
