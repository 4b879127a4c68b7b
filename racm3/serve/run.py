"""Run: what ``racm3 serve`` does. The model and its memory are opened, or made, before the first request is taken."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path

from racm3.errors import ConfigError
from racm3.memory.memory import Memory
from racm3.pipeline import RACM3
from racm3.retriever.encoder import Encoder
from racm3.retriever.ingest import memory_of
from racm3.scenes.world import World
from racm3.serve.api import Policy
from racm3.serve.guard import LOOPBACK_HOSTS, Tokens, is_loopback
from racm3.serve.limits import LIMITS, Limits

WORLD_MEMORY = Path("out/serve/memory")
WORLD = World(memory=2)
"""Two documents of every entity, as many as are read at a time: made in seconds, so that the first start is quick."""
LAST_ANSWERS_S = 5.0
"""What sending the last answers may take when the server ends, beyond the time of a request."""


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
) -> None:
    """Answer requests until the process is told to end; those accepted by then are still answered.

    Raises ConfigError if others than this machine reach ``host`` and there are no tokens.
    """
    import torch
    import uvicorn

    from racm3.serve.app import create_app

    # One core is left to the event loop and the disk: threads of one step wait for each other, and where one of them is
    # kept from its core all take longer. On two cores one thread is faster, for one client and for 200.
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))
    tokens = None if token_file is None else Tokens.load(token_file)
    if tokens is None and not is_loopback(host):
        raise ConfigError(
            f"others can reach {host}, so a token is wanted; give --token-file FILE with lines 'read TOKEN' or "
            "'write TOKEN', or serve on 127.0.0.1"
        )
    judge = None if policy is None else load_policy(policy)
    model = RACM3.from_pretrained(models, memory)
    if model.memory is None:
        model.memory = world_memory(WORLD_MEMORY, model.encoder)
    app = create_app(
        model,
        f"racm3-{Path(models).name}",
        limits=limits,
        tokens=tokens,
        hosts=LOOPBACK_HOSTS if tokens is None else (),
        fetch_from=fetch_from,
        policy=judge,
    )
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(limits.timeout_s + LAST_ANSWERS_S),
    )
    listener = config.bind_socket()
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    print(f"{len(model.memory)} documents in {model.memory.path}; open {where}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def world_memory(path: Path, encoder: Encoder) -> Memory:
    """The memory of the built-in world at ``path``, made if nothing is there; whole, or not at all."""
    if not path.exists():
        print(f"making the memory of the built-in world in {path}", flush=True)
    return memory_of(path, encoder, WORLD.items("memory"))


def load_policy(name: str) -> Policy:
    """The function MODULE:NAME. Raises ConfigError if there is none."""
    module, _, function = name.partition(":")
    try:
        found: Policy = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the policy {name!r} cannot be loaded: {error}; give MODULE:FUNCTION") from error
    return found
