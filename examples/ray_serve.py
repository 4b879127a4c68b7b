"""The API from several replicas over one memory, under Ray Serve. Needs `pip install 'racm3[serve,scale]'`.

    python examples/ray_serve.py out/memory --replicas 2

A replica keeps nothing of a request, and each sees what any of them has changed in the memory with its next search, so
it does not matter which one answers. Who may use it is for what stands in front of Ray to say.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray import serve


def application(models: str, memory: str, replicas: int) -> Any:
    """The Ray Serve application: each replica opens its own model, over the one memory."""

    def app() -> Any:
        from racm3.pipeline import RACM3
        from racm3.serve.app import create_app

        return create_app(RACM3.from_pretrained(models, memory), f"racm3-{Path(models).name}")

    return serve.deployment(serve.ingress(app)(), name="racm3", num_replicas=replicas).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memory", type=Path)
    parser.add_argument("--models", default="scenes")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    serve.start(http_options={"port": args.port})
    serve.run(application(args.models, str(args.memory.resolve()), args.replicas), blocking=True)


if __name__ == "__main__":
    main()
