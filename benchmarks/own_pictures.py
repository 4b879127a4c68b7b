"""What a folder of 300 pictures of a user gives: the README's commands, then 60 captions of what is not in it.

``examples/pictures.py`` draws the folder, preset ``pictures`` trains on it (about 10 minutes of processor time;
``--models`` takes a folder that is trained). A picture is taken for the drawing that is nearest to it in squared error,
of all 864 combinations, each drawn six times. Beside what is drawn: the best retrieved picture itself, and the true
one, through the image tokenizer and as it is, which says how far to believe the judge. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from racm3 import cli
from racm3.document import Document, Hole, Image
from racm3.evaluation.scenes_protocol import best_retrieved, pixels, through_tokenizer
from racm3.pipeline import RACM3, Settings

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))
from pictures import COLOURS, LANDSCAPES, SIDES, SUBJECTS, picture  # noqa: E402

COUNT, ASKED, DRAWN = 300, 60, 6
KINDS = ("subject", "colour", "landscape", "side")
EVERY = list(itertools.product(SUBJECTS, COLOURS, LANDSCAPES, SIDES))


class Judge:
    """Tells a picture's combination by the drawing it is nearest to."""

    def __init__(self, rng: np.random.Generator) -> None:
        drawn = [[Image(np.asarray(picture(*row, rng)[0])) for _ in range(DRAWN)] for row in EVERY]
        self.drawings = np.stack([pixels(own) for own in drawn]).astype(np.float32)  # (864, DRAWN, H, W, 3)

    def shares(self, images: Sequence[Image], truth: Sequence[tuple[str, ...]]) -> dict[str, float]:
        """The share of pictures right in each of ``KINDS``, and in all."""
        right = []
        for shown, row in zip(pixels(images).astype(np.float32), truth, strict=True):
            distance = ((self.drawings - shown) ** 2).mean((2, 3, 4)).min(1)  # (864,)
            right.append([one == other for one, other in zip(EVERY[int(distance.argmin())], row, strict=True)])
        told = np.array(right)
        shares = dict(zip(KINDS, told.mean(0).tolist(), strict=True)) | {"all": float(told.all(1).mean())}
        return {kind: round(share, 2) for kind, share in shares.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a folder trained on examples/pictures.py, with its memory")
    parser.add_argument("--work", type=Path, default=Path("out/own-pictures"), help="where one is trained otherwise")
    given = parser.parse_args(arguments)
    # The folder holds the first of this order: examples/pictures.py with its own seed.
    order = np.random.default_rng(0).permutation(len(EVERY))
    rng = np.random.default_rng(1)
    asked = [EVERY[i] for i in rng.permutation(order[COUNT:])[:ASKED]]
    true, captions = zip(*(picture(*row, rng) for row in asked), strict=True)
    if (models := given.models) is None:
        models, folder = given.work, given.work / "pictures"
        subprocess.run([sys.executable, str(EXAMPLES / "pictures.py"), str(folder)], check=True)
        run = ["train", "generator", str(folder), "--preset", "pictures", "--out", str(models / "generator")]
        if status := cli.main(run):
            raise SystemExit(status)
    model = RACM3.from_pretrained(models, memory=models / "memory")
    done = model.complete([Document.of(caption, Hole("image")) for caption in captions], Settings())
    truth = [Image(np.asarray(drawn)) for drawn in true]
    judge = Judge(rng)
    shares = {
        "retrieval": judge.shares([one.document.images[0] for one in done], asked),
        "returned": judge.shares([best_retrieved(one) for one in done], asked),
        "ceiling": judge.shares(through_tokenizer(truth, model.image), asked),
        "judge": judge.shares(truth, asked),
    }
    for row, own in shares.items():
        print(f"{row:10}", "  ".join(f"{kind} {100 * share:.0f} %" for kind, share in own.items()))
    print(json.dumps(shares | {"n": ASKED}))


if __name__ == "__main__":
    main()
