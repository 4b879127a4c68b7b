"""Run: what ``racm3 serve`` does. What can be wrong is looked at first; then the model and its memory are opened, or
made, before the first request is taken."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from racm3.errors import ConfigError, MemoryStoreError
from racm3.serve.limits import LIMITS, Limits

if TYPE_CHECKING:
    from racm3.memory.memory import Memory
    from racm3.retriever.encoder import Encoder
    from racm3.serve.api import Policy

WORLD_MEMORY = Path("out/serve/memory")
WORLD_DOCUMENTS = 2
"""Documents of every entity, as many as are read at a time: made in seconds, so that the first start is quick."""
LAST_ANSWERS_S = 5.0
"""What sending the last answers may take when the server ends, beyond the time of a request."""
OTHER_FILES = 200
"""Files that a server has open beside its connections, at most (ours)."""

log = logging.getLogger(__name__)


def serve(
    models: str,
    memory: Path | None,
    host: str,
    port: int,
    *,
    token_file: Path | None = None,
    limits: Limits = LIMITS,
    fetch_from: Collection[str] = (),
    policy: str | None = None,
    names: Sequence[str] = (),
    origins: Collection[str] = (),
    root_path: str = "",
    access_log: str = "none",
) -> None:
    """Answer requests until the process is told to end; those accepted by then are still answered.

    SIGHUP opens the weights of ``models`` again, and what comes next is answered by them. Raises ConfigError if others
    than this machine reach ``host`` and there are no tokens, or the port cannot be had; MemoryStoreError if there is no
    memory at ``memory``: both before anything large is opened.
    """
    check_paths(memory, origins, root_path)
    from racm3.serve.guard import LOOPBACK_HOSTS, Tokens, is_loopback

    tokens = None if token_file is None else Tokens.load(token_file)
    if tokens is None and not is_loopback(host):
        raise ConfigError(
            f"others can reach {host}, so a token is wanted; give --token-file FILE with lines 'read TOKEN' or "
            "'write TOKEN', or serve on 127.0.0.1"
        )
    judge = None if policy is None else load_policy(policy)
    room_for(limits.connections)
    listener = listening(host, port)

    import torch
    import uvicorn

    from racm3.pipeline import RACM3
    from racm3.serve.app import create_app
    from racm3.serve.call import log_as
    from racm3.serve.connection import connection_of

    # One core is left to the event loop and the disk: threads of one step wait for each other, and where one of them is
    # kept from its core all take longer. On two cores one thread is faster, for one client and for 200.
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    model = RACM3.from_pretrained(models, memory)
    if model.memory is None:
        model.memory = world_memory(WORLD_MEMORY, model.encoder)
    app = create_app(
        model,
        *(names or (f"racm3-{Path(models).name}",)),
        limits=limits,
        tokens=tokens,
        hosts=LOOPBACK_HOSTS if tokens is None else (),
        fetch_from=fetch_from,
        policy=judge,
        origins=origins,
    )
    log_as(access_log)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=connection_of(limits),
        ws="none",
        root_path=root_path,
        timeout_keep_alive=int(limits.keep_alive_s),
        timeout_graceful_shutdown=int(limits.timeout_s + LAST_ANSWERS_S),
    )
    signal.signal(signal.SIGHUP, lambda *_: app.state.engine_thread.reload(models))
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"{len(model.memory)} documents in {model.memory.path}; open {where}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def check_paths(memory: Path | None, origins: Collection[str], root_path: str) -> None:
    """Raises MemoryStoreError or ConfigError for what is wrong at a glance."""
    local = memory is not None and not str(memory).startswith("s3:")
    if memory is not None and local and not (memory / "_versions").is_dir():
        what = "is no memory" if memory.exists() else "does not exist"
        raise MemoryStoreError(
            f"the memory {memory} {what}; make one with `racm3 memory create {memory} SOURCE`, or leave out --memory"
        )
    for origin in origins:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise ConfigError(f"--cors-origin is {origin!r}; give scheme and host alone, such as https://example.org")
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise ConfigError(f"--root-path is {root_path!r}; it begins with / and does not end with it, such as /racm3")


def listening(host: str, port: int) -> socket.socket:
    """A socket at the address. Raises ConfigError if it cannot be had."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise ConfigError(
            f"{host}:{port} cannot be listened at: {why}; give another --port, 0 for any that is free, or "
            "end what has it"
        ) from None
    listener.set_inheritable(False)
    return listener


def room_for(connections: int) -> None:
    """Let this process have so many connections open. Raises ConfigError if the system does not."""
    least = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < least:
        raise ConfigError(
            f"connections is {connections}, and the system lets a process have {hard} files; give --set "
            f"connections={max(1, hard - OTHER_FILES)}, or raise `ulimit -n`"
        )
    if soft != resource.RLIM_INFINITY and soft < least:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))


def world_memory(path: Path, encoder: Encoder) -> Memory:
    """The memory of the built-in world at ``path``; made, or made on, unless it is there."""
    from racm3.retriever.ingest import finished_memory, memory_of
    from racm3.scenes.world import World

    if finished_memory(path) is None:
        print(f"making the memory of the built-in world in {path}", flush=True)
    return memory_of(path, encoder, World(memory=WORLD_DOCUMENTS).items("memory"))


def load_policy(name: str) -> Policy:
    """The function MODULE:NAME. Raises ConfigError if there is none."""
    module, _, function = name.partition(":")
    try:
        found: Policy = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the policy {name!r} cannot be loaded: {error}; give MODULE:FUNCTION") from error
    return found
