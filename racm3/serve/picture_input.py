"""Pictures as the API takes them: encoded bytes, data URLs, and, where it is switched on, https URLs of named hosts.

A picture's size is read before its pixels, so that a decompression bomb is refused before it is unpacked.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import socket
import ssl
from collections.abc import Collection
from urllib.parse import urlsplit

import PIL.Image

from racm3.document import FORMATS, Image
from racm3.errors import ImageError
from racm3.masks import masked

__all__ = ["fetch", "from_url", "opened", "with_mask"]

FETCH_S = 10.0
"""How long a fetched picture may take, to connect and for each piece of it."""
PIECE_BYTES = 1 << 16


def opened(data: bytes, most_pixels: int, what: str) -> Image:
    """The picture in encoded bytes. Raises ImageError for anything else, or one of more pixels than allowed."""
    _check_size(data, most_pixels, what)
    try:
        return Image.open(data)
    except ImageError as error:
        raise ImageError(f"{what}: {error}") from None


def _check_size(data: bytes, most_pixels: int, what: str) -> None:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
    except Exception:  # what Pillow's parsers raise at damaged bytes is of every kind
        raise ImageError(f"{what} is not a picture that can be read; allowed: {', '.join(FORMATS)}") from None
    if width * height > most_pixels:
        raise ImageError(f"{what} has {width} x {height} pixels; at most {most_pixels:,} are read: scale it down")


def from_url(url: str, most_pixels: int, most_bytes: int, hosts: Collection[str], what: str) -> Image:
    """The picture of a data URL, or of an https URL of one of ``hosts``."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "data":
        return opened(fetch(url, most_bytes, hosts, what), most_pixels, what)
    head, comma, body = rest.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError(f"{what}: a picture is given as data:image/png;base64,... (or jpeg, webp, gif, bmp, tiff)")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(f"{what}: what follows the comma of the data URL is not base64") from None
    return opened(data, most_pixels, what)


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
            data = b""
            while piece := answer.read(PIECE_BYTES):
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


def with_mask(image: bytes, mask: bytes | None, most_pixels: int) -> Image:
    """The picture with its region hidden, as ``masks.masked`` says. Raises ImageError for more pixels than allowed, or
    if nothing is hidden."""
    for data, what in ((image, "image"), (mask, "mask")):
        if data is not None:
            _check_size(data, most_pixels, what)
    return masked(image, mask)
