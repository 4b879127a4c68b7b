"""The study: which experiments and which trainings there are, and what becomes of each, one result file a name.

    experiments   on the weights of a folder of models: ``experiments.py``, nothing is trained
    trainings     a variant of a preset, in three seeds: trained on the world's ``train`` split, then examined

A name is done when docs/results/study/NAME.json is there, and is of these settings and weights. Whatever was broken off
goes on: a training at its last checkpoint, prepared data where they stood. Trainings share image tokenizer, encoder,
prepared data and memory, and no training sees a novel entity. ``report.py`` makes a page of the results.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from racm3.data import write_webdataset
from racm3.errors import ConfigError, unknown
from racm3.evaluation.protocol import weights_digest
from racm3.evaluation.scenes_protocol import Protocol, about_scenes, world_memory
from racm3.model_folder import SCENES, SHIPPED, ModelFolder
from racm3.pipeline import RACM3
from racm3.presets import preset
from racm3.scenes.draw import SCENE_PX
from racm3.scenes.judges import Judge
from racm3.training.generator_recipe import Batches, GeneratorRun
from racm3.training.loop import MAY_CHANGE
from racm3.training.models import prepared_model
from racm3.training.prepared_cache import Cache
from racm3.util.config import dotted, override, to_dict
from racm3.util.files import write_whole
from racm3.util.progress import progress
from study.experiments import EXPERIMENTS, Lab, Sheet, examine_generator

__all__ = ["EXPERIMENTS", "NAMES", "SIZES", "TRAININGS", "VARIANTS", "Study", "Variant", "rerun", "steps_to_reach"]

SEEDS = (0, 1, 2)
SHARED = ("image-tokenizer", "encoder", "judge")
"""Models that all trainings are made or examined with."""
NOTHING_REDUNDANT = 2.0
"""A threshold that no cosine reaches."""
SHORT = ("loop.steps=1400", "validation_documents=100", "loop.look_every=100")
"""Of every training (ours): 36 at the size and the steps of the preset take 21 hours of a core, these 8. Small ones
begin to copy: after 600 steps two documents change nothing of what is drawn, after 1,400 they bring it nearer to the
true pictures. Every 100 steps, the loss on the same held-out documents is measured; it adds about 2 % to the time."""
OF_RETRIEVAL = {"alpha", "rename_share", "text_query_share", "query_dropout"}
"""Settings that change nothing where nothing is retrieved."""
EXAMINED = 100
"""Pictures a split that a training is judged by: the seeds differ by more than their standard error."""


@dataclass(frozen=True)
class Variant:
    """A training: a preset and the settings that differ. ``skip``: whether redundant documents are skipped, in training
    and afterwards."""

    preset: str = "scenes"
    set: tuple[str, ...] = ()
    skip: bool = True

    def run(self, seed: int, more: Sequence[str] = ()) -> GeneratorRun:
        """The training of one seed, with further settings."""
        usual = override(preset(self.preset).generator, SHORT)
        return override(override(usual, self.set), [f"loop.seed={seed}", *more])


SMALL = ("model.width=128", "model.layers=4", "model.head_dim=32", "model.mlp_width=352")
MEDIUM = ("model.width=160", "model.layers=5", "model.head_dim=40", "model.mlp_width=432")

DROPPED = "query_dropout=0.2"
"""As in the paper; the presets of the world ask whole queries."""

VARIANTS: dict[str, Variant] = {
    "alpha-0.1": Variant(set=(*SMALL, DROPPED, "alpha=0.1")),
    "vanilla": Variant("scenes-vanilla", SMALL),
    "alpha-0": Variant(set=(*SMALL, DROPPED, "alpha=0")),
    "alpha-1": Variant(set=(*SMALL, DROPPED, "alpha=1")),
    "no-redundancy-skip": Variant(set=(*SMALL, DROPPED, "alpha=0.1"), skip=False),
    "no-query-dropout": Variant(set=(*SMALL, "alpha=0.1")),
    "alpha-0.3": Variant(set=(*SMALL, DROPPED, "alpha=0.3")),
    "small": Variant(set=SMALL),
    "medium": Variant(set=MEDIUM),
    "medium-vanilla": Variant("scenes-vanilla", MEDIUM),
    "large": Variant(),
    "large-vanilla": Variant("scenes-vanilla"),
}

SIZES = (("small", "vanilla"), ("medium", "medium-vanilla"), ("large", "large-vanilla"))
"""With retrieval and without, from small to large; the last is as large as what is shipped."""

FIRST = ("alpha-0.1", "vanilla", "alpha-0")
"""What most claims rest on: all seeds of these are trained before the others."""

TRAININGS: dict[str, tuple[str, int]] = {
    f"{variant}-seed-{seed}": (variant, seed)
    for variant, seed in [
        *((variant, seed) for seed in SEEDS for variant in FIRST),
        *((variant, seed) for seed in SEEDS for variant in VARIANTS if variant not in FIRST),
    ]
}
"""(variant, seed) by name, in the order in which they are run."""

NAMES = (*EXPERIMENTS.names(), *TRAININGS)


@dataclass(frozen=True)
class Study:
    """Where the result files go (``results``), everything else of the study (``work``), the folder of models under
    examination, whose image tokenizer, encoder and judge serve the trainings too; ``train``: settings of all trainings.

    200 pictures a split: a share then has a standard error of at most 3.5 points. 1,000 trials: 1.6 points.
    """

    results: Path = Path("docs/results/study")
    work: Path = Path("out/study")
    models: Path = SCENES
    protocol: Protocol = Protocol(n=200, trials=1000)
    train: tuple[str, ...] = ()

    def file(self, name: str) -> Path:
        """Where the result of an experiment or training lies."""
        return self.results / f"{name.replace(':', '.')}.json"


def selected(only: Iterable[str]) -> list[str]:
    """The names of experiments and trainings, all or those asked for; a variant stands for all of its seeds, and
    MODULE:FUNCTION for an experiment of another package.

    Raises ConfigError for a name that is none.
    """
    asked = list(only)
    foreign = [name for name in asked if ":" in name]
    for name in foreign:
        EXPERIMENTS.get(name)
    for name in asked:
        if name not in (*NAMES, *VARIANTS, *foreign):
            raise ConfigError(unknown("experiment or training", name, (*NAMES, *VARIANTS)))
    own = [name for name in NAMES if not asked or name in asked or TRAININGS.get(name, ("",))[0] in asked]
    return [*own, *foreign]


def rerun(study: Study, only: Iterable[str] = ()) -> None:
    """Do what is selected and not done, and write its result files, with progress and the time left on stderr."""
    todo = [name for name in selected(only) if not is_done(study, name)]
    print(f"study: {len(todo)} to do: {', '.join(todo) or 'nothing'}", file=sys.stderr)
    for place, name in enumerate(todo):
        started = time.monotonic()
        result, sheet = _train(study, *TRAININGS[name]) if name in TRAININGS else _experiment(study, name)
        result["protocol"]["elapsed_s"] = round(time.monotonic() - started)
        study.results.mkdir(parents=True, exist_ok=True)
        if sheet:
            tiles(sheet).save(study.file(name).with_suffix(".webp"), quality=90)
            result["sheet"] = {"heads": sheet.heads, "titles": [title for title, _ in sheet.lines]}
        write_whole(study.file(name), json.dumps({"name": name} | result) + "\n")
        left = _left(study, todo[place + 1 :])
        print(f"study: {name} took {(time.monotonic() - started) / 60:.1f} min; {left}", file=sys.stderr)


def is_done(study: Study, name: str) -> bool:
    """Whether there is a result of these settings and weights; says so if there is one of others."""
    file = study.file(name)
    if not file.exists():
        return False
    stored = json.loads(file.read_bytes())
    expected = dotted(to_dict(study.protocol))
    found = dotted(stored["protocol"])
    weights: tuple[str, ...] = SHIPPED
    if name in TRAININGS:
        variant, seed = TRAININGS[name]
        expected = dotted(to_dict(_examined(study.protocol)))
        expected |= _identity(VARIANTS[variant], seed, study.train)
        found |= dotted(stored["settings"])
        weights = SHARED
    expected |= {f"weights.{one}": weights_digest(study.models / one) for one in weights}
    differing = [key for key, value in expected.items() if found.get(key) != value]
    if differing:
        print(f"study: {file} is of other settings or weights ({', '.join(differing)}): again", file=sys.stderr)
    return not differing


def _examined(protocol: Protocol) -> Protocol:
    """By which trainings are judged: as they are, without what decoding can add to them."""
    return replace(protocol, n=min(protocol.n, EXAMINED)).with_context_aware(1.0)


def _identity(variant: Variant, seed: int, more: Sequence[str]) -> dict[str, Any]:
    """What makes a training this one, by dotted name: all but how it is computed, and what has no say in it."""
    run = variant.run(seed, more)
    no_say = (MAY_CHANGE - {"loop.steps"}) | (set() if run.k else OF_RETRIEVAL)
    settings = dotted(to_dict(run) | {"skip": variant.skip})
    return {name: value for name, value in settings.items() if name not in no_say}


def _left(study: Study, names: Sequence[str]) -> str:
    """What is still to do, and how long it takes if each takes as long as the mean of its kind that is done."""
    minutes = 0.0
    for kind in (EXPERIMENTS.names(), tuple(TRAININGS)):
        left = sum(name in kind for name in names)
        done = [json.loads(study.file(name).read_bytes()) for name in kind if study.file(name).exists()]
        if left and not done:
            return f"{len(names)} left"
        minutes += left * float(np.mean([one["protocol"]["elapsed_s"] for one in done])) / 60 if left else 0
    return f"{len(names)} left, about {minutes:.0f} min"


def tiles(sheet: Sheet) -> PIL.Image.Image:
    """The pictures of a sheet without its words, a row a line."""
    lines = [np.concatenate([one.resized(SCENE_PX).pixels for one in images], axis=1) for _, images in sheet.lines]
    return PIL.Image.fromarray(np.concatenate(lines))


# One name ----------------------------------------------------------------------------------------------------------


def _experiment(study: Study, name: str) -> tuple[dict[str, Any], Sheet | None]:
    judge = Judge.from_pretrained(study.models / "judge")
    retrieval = RACM3.from_pretrained(study.models)
    vanilla = RACM3.from_pretrained(study.models, generator="vanilla")
    with progress() as on_step:
        retrieval.memory = world_memory(study.work / "memory", study.protocol.world, retrieval.encoder, on_step)
        experiment = EXPERIMENTS.get(name)
        found = experiment(Lab(retrieval, vanilla, judge, study.protocol, on_step))
    about = about_scenes(study.protocol, retrieval, study.models, SHIPPED)
    decoding = {name: to_dict(settings) for name, settings in found.decoding.items()}
    said = {} if name in NAMES else {"about": (experiment.__doc__ or "").strip()}  # of ours, the report says it
    return said | {"rows": found.rows, "protocol": about | {"decoding": decoding}}, found.sheet


def _train(study: Study, name: str, seed: int) -> tuple[dict[str, Any], None]:
    """Train a variant, or take it up where it stood, and examine it."""
    variant = VARIANTS[name]
    run = variant.run(seed, study.train)
    made_with = json.dumps(_identity(variant, seed, study.train), sort_keys=True).encode()
    folder = study.work / "runs" / f"{name}-seed-{seed}-{hashlib.blake2b(made_with, digest_size=4).hexdigest()}"
    models = ModelFolder(study.models)
    encoder = models.encoder()
    if not variant.skip:
        encoder.redundancy_threshold = NOTHING_REDUNDANT
    retriever, prepared = encoder if run.k else None, Cache(study.work / "prepared")
    made = prepared_model(_training_data(study), run, models.image_tokenizer(), retriever, prepared, seed=0)
    made.train(run, folder, samples=False)  # nothing is left to do if it is done
    generator = ModelFolder.around(folder).generator()
    with progress() as on_step:
        memory = world_memory(study.work / "memory", study.protocol.world, encoder, on_step)
        model = RACM3(generator, made.text, made.image, made.markup, encoder, memory)
        protocol = _examined(study.protocol)
        lab = Lab(model, model, Judge.from_pretrained(study.models / "judge"), protocol, on_step)
        rows = examine_generator(lab, (2, 0) if run.k else (0,))
    journal = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    looks = [row for row in journal if "validation" in row]
    tokens = Batches(made.documents, made.markup, made.image.grid, run).mean_tokens
    about = about_scenes(protocol, model, study.models, SHARED)
    about["weights"]["generator"] = weights_digest(folder)
    return {
        "variant": name,
        "seed": seed,
        "settings": to_dict(run) | {"skip": variant.skip},
        "parameters": generator.parameter_count,
        "flops_per_step": generator.flops_per_token(round(tokens)) * run.tokens_per_step,
        "train_s": round(seconds([row["elapsed_s"] for row in journal])),
        "curve": {"step": [row["step"] for row in looks], "loss": [round(row["validation"], 4) for row in looks]},
        "rows": rows,
        "protocol": about,
    }, None


def _training_data(study: Study) -> Path:
    """The world's ``train`` split on disk; written if it is not there."""
    folder = study.work / "train"
    if not folder.exists():
        part = folder.with_name("train.part")
        write_webdataset(study.protocol.world.items("train"), part)
        part.rename(folder)
    return folder


def seconds(elapsed_s: Sequence[float]) -> float:
    """How long a run took whose rows tell the seconds since its start, or since it was taken up again."""
    last = [now for now, later in zip(elapsed_s, [*elapsed_s[1:], 0.0], strict=True) if later < now]
    return sum(last)


def steps_to_reach(steps: Sequence[float], losses: Sequence[float], goal: float) -> float | None:
    """The step at which a curve is first at ``goal`` or below, straight between its points; None if it never is."""
    for place, loss in enumerate(losses):
        if loss <= goal:
            if place == 0:
                return float(steps[0])
            before, step = losses[place - 1], steps[place - 1]
            return float(step + (before - goal) / (before - loss) * (steps[place] - step))
    return None
