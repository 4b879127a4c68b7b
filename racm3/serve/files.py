"""Files: pictures that wait to be fetched by a signed address, for a while and in memory alone."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections import OrderedDict
from secrets import token_bytes, token_hex

from racm3.serve.guard import ApiError

__all__ = ["Files"]

HOLDS_S = 600
MOST_BYTES = 64_000_000
"""Of all pictures that wait (ours); the oldest goes first."""


class Files:
    """Pictures by address. The signature is of this process: another server of the same kind does not know them."""

    def __init__(self) -> None:
        self._key, self._lock = token_bytes(), threading.Lock()
        self._kept: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._bytes = 0

    def put(self, data: bytes, kind: str) -> str:
        """Keep a picture; its address, without the server's own."""
        name, until = token_hex(16), int(time.time()) + HOLDS_S
        with self._lock:
            self._kept[name] = data, kind
            self._bytes += len(data)
            while self._bytes > MOST_BYTES and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1][0])
        return f"v1/images/files/{name}?until={until}&signature={self._signature(name, until)}"

    def get(self, name: str, until: int, signature: str) -> tuple[bytes, str]:
        """The bytes of a picture, and its format. Raises ApiError if the address is not one that was given, or no
        longer holds."""
        if not hmac.compare_digest(signature.encode(), self._signature(name, until).encode()):
            raise ApiError(403, "this address was not given by this server", "invalid_signature")
        with self._lock:
            found = self._kept.get(name)
        if found is None or time.time() > until:
            raise ApiError(404, f"this address held for {HOLDS_S // 60} minutes; ask for the picture again", "expired")
        return found

    def _signature(self, name: str, until: int) -> str:
        return hmac.new(self._key, f"{name} {until}".encode(), hashlib.sha256).hexdigest()
