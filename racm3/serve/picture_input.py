"""Pictures as the API takes them: encoded bytes, data URLs, and, where it is switched on, https URLs of named hosts.

A picture's size is read before its pixels, so that a decompression bomb is refused before it is unpacked. What a model
looks at is its centre square in the model's size: a large picture is scaled to about that while it is read.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import math
import socket
import ssl
import time
from collections.abc import Collection
from urllib.parse import urlsplit

import PIL.Image

from racm3.document import FORMATS, Image
from racm3.errors import ImageError
from racm3.masks import masked

__all__ = ["data_of", "fetch", "is_data", "opened", "pixels_of", "with_mask"]

FETCH_S = 10.0
"""How long a fetched picture may take, to connect and for each piece of it."""
MOST_FETCH_S = 30.0
"""How long it may take in all."""
PIECE_BYTES = 1 << 16
AS_IT_IS_PIXELS = 1 << 20
"""Pictures of at most so many are looked at as they are (ours)."""
SIDE_PX = 512
"""The side that the centre square of a larger one is scaled to (ours: twice what today's models see)."""


def opened(data: bytes, what: str, *, whole: bool = False) -> Image:
    """The picture in encoded bytes, whose size was looked at. A large one is scaled down, unless ``whole``.

    Raises ImageError for anything else.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            if not whole and picture.format == "JPEG" and picture.width * picture.height > AS_IT_IS_PIXELS:
                scale = SIDE_PX / min(picture.size)
                picture.draft(None, (math.ceil(picture.width * scale), math.ceil(picture.height * scale)))
                return Image.open(picture).resized(min(*picture.size, SIDE_PX))
        shown = Image.open(data)
        return shown if whole else _looked_at(shown)
    except ImageError as error:
        raise ImageError(f"{what}: {str(error).replace(f'{picture!s}', 'the given bytes')}") from None
    except Exception as error:  # what Pillow's parsers raise at damaged bytes is of every kind
        raise ImageError(f"{what} cannot be read as a picture: {error!s:.300}") from None


def _looked_at(image: Image) -> Image:
    height, width = image.pixels.shape[:2]
    return image if height * width <= AS_IT_IS_PIXELS else image.resized(min(height, width, SIDE_PX))


def pixels_of(data: bytes, most_pixels: int, what: str) -> int:
    """How many pixels the picture in encoded bytes has. Raises ImageError for anything else, or if they are more than
    allowed."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    except Exception:  # what Pillow's parsers raise at damaged bytes is of every kind
        raise ImageError(f"{what} is not a picture that can be read; allowed: {', '.join(FORMATS)}") from None
    if width * height > most_pixels:
        raise ImageError(f"{what} has {width} x {height} pixels; at most {most_pixels:,} are read: scale it down")
    return width * height


def is_data(url: str) -> bool:
    """Whether a URL holds the picture itself."""
    return url[:5].lower() == "data:"


def data_of(url: str, what: str) -> bytes:
    """The bytes of a data URL. Raises ImageError if it is none of a picture."""
    _, _, rest = url.partition(":")
    head, comma, body = rest.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError(f"{what}: a picture is given as data:image/png;base64,... (or jpeg, webp, gif, bmp, tiff)")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{what}: what follows the comma of the data URL is not base64") from None


def fetch(url: str, most_bytes: int, hosts: Collection[str], what: str) -> bytes:
    """The bytes at an https URL of one of ``hosts``, from a public address, without following redirects."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ImageError(f"{what}: the URL cannot be read; give a data URL") from None
    if not hosts:
        raise ImageError(f"{what}: this server fetches no URLs; give the picture as a data URL")
    if (
        parts.scheme != "https"
        or host is None
        or host not in hosts
        or port not in (None, 443)
        or parts.username is not None
    ):
        raise ImageError(f"{what}: only https URLs of {', '.join(sorted(hosts))} are fetched, on port 443")
    try:
        connection = http.client.HTTPConnection(host, timeout=FETCH_S)
        connection.sock = _connect(host)
        try:
            connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
            answer = connection.getresponse()
            if answer.status != 200:
                raise ImageError(f"{what}: {host} answered {answer.status}; redirects are not followed")
            data, until = b"", time.monotonic() + MOST_FETCH_S
            while piece := answer.read1(PIECE_BYTES):
                if time.monotonic() > until:
                    raise ImageError(f"{what}: {host} took longer than {MOST_FETCH_S:g} s")
                data += piece
                if len(data) > most_bytes:
                    raise ImageError(f"{what}: it has more than {most_bytes:,} bytes")
            return data
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{what}: it cannot be fetched from {host}: {type(error).__name__}") from None


def _connect(host: str) -> ssl.SSLSocket:
    """A connection to the address that was looked at: a name that leads into a private network is refused."""
    address = str(socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)[0][4][0])
    if not ipaddress.ip_address(address).is_global:
        raise ImageError(f"{host} is not a public address; it is not fetched")
    plain = socket.create_connection((address, 443), timeout=FETCH_S)
    try:
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def with_mask(image: bytes, mask: bytes | None) -> Image:
    """The picture with its region hidden, as ``masks.masked`` says; a large one is scaled down. Raises ImageError if
    nothing is hidden."""
    return _looked_at(masked(image, mask))
