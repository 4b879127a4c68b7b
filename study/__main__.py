"""``python -m study``: write the page of results, and measure before what is not measured yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from racm3.errors import InputError, RACM3Error
from racm3.model_folder import ModelFolder
from racm3.util.config import override
from study.report import write_report
from study.runs import Study
from study.runs import rerun as run

Folder = Annotated[Path, arg(metavar="FOLDER")]
Names = Annotated[tuple[str, ...], arg(metavar="[NAME ...]")]
Overrides = Annotated[tuple[str, ...], arg(metavar="[KEY=VALUE ...]")]


def study(
    *,
    rerun: bool = False,
    only: Names = (),
    docs: Folder = Path("docs"),
    work: Folder = Study.work,
    models: Annotated[str, arg(metavar="FOLDER")] = "scenes",
    set: Overrides = (),
    train: Overrides = (),
) -> None:
    """Write docs/results.md, its plots and its sheets of pictures from the study's result files.

    With --rerun, whatever has no result file is trained and measured first; what was broken off goes on. Each training
    takes 4 to 12 minutes on a core, all measurements without training together about 25.

    Args:
        rerun: Do what is not done, in the order in which it tells most.
        only: Of that, these experiments, trainings, or variants with all their seeds; a wrong name lists them. An
            experiment of your own is MODULE:FUNCTION; study/experiments.py shows what one is.
        docs: Where the page goes; the result files are in results/study below it.
        work: Where memory, prepared data and trainings go.
        models: A folder of image-tokenizer, encoder, generator, vanilla and judge, or scenes, the shipped one.
        set: Settings of racm3.evaluation.scenes_protocol.Protocol, such as n=20 trials=50.
        train: Settings of all trainings, such as loop.threads=1.
    """
    if not rerun and (only or set or train):
        raise InputError("--only, --set and --train say what to measure; add --rerun, or leave them out")
    if rerun:
        folder, protocol = ModelFolder.open(models).path, override(Study.protocol, set)
        run(Study(docs / "results" / "study", work, folder, protocol, train), only)
    print(f"wrote {write_report(docs)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, by default the process's own, and return its exit status."""
    try:
        tyro.cli(study, args=arguments, prog="python -m study")
    except RACM3Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"error: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
