"""Protocol: MS-COCO, as published numbers are made (``racm3 evaluate coco``).

    drawing      30,000 pictures of val2014 are taken by seed, and one caption of each; FID is between what the
                 generator draws for these captions and the pictures themselves, each cut to its middle square
    captioning   the 5,000 pictures of Karpathy's test split; CIDEr-D against their five captions

DATA is Karpathy's ``dataset_coco.json``, beside it the folders that it names (``val2014``). The memory may hold none of
these pictures: train2014 may be in it, train2017 may not, for most of val2014 is there. That is checked by their ids.

Every answer is written when it is there, and the same command goes on behind the last one. A request's seed is of its
place, so the answers do not depend on where a run was broken off. What public sources do not say is said in the result:
whether references are raw (here they are), decoding and its seeds.

N pictures, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from racm3.data.item import inside
from racm3.document import Document, Hole, Image
from racm3.errors import ConfigError, InputError, SourceError
from racm3.evaluation.bootstrap import Scores, means
from racm3.evaluation.cider import cider_d
from racm3.evaluation.clipscore import clip_score
from racm3.evaluation.features import Features
from racm3.evaluation.frechet import Moments, frechet_distance
from racm3.evaluation.protocol import about_code, about_memory, check_comparable, digest_of_ids, weights_digest
from racm3.evaluation.words import words
from racm3.generator.sampling import Sampling
from racm3.memory.memory import Memory
from racm3.model_folder import ModelFolder
from racm3.pipeline import RACM3, Completion, Settings
from racm3.util.config import to_dict
from racm3.util.files import write_whole
from racm3.util.progress import Report, progress

__all__ = ["CocoProtocol", "Picture", "evaluate_coco", "read_karpathy"]

AT_ONCE = 64  # requests completed, and pictures scored, together

T = TypeVar("T")
Look = Callable[[Sequence[Image]], np.ndarray]
"""Pictures to features (N, D)."""


@dataclass(frozen=True)
class CocoProtocol:
    """How many are drawn and captioned, and how. The paper keeps the best of 10 drawings by CLIP and of 32 captions by
    perplexity (second-hand); temperatures, top-p and guidance are ours, its own are not known."""

    drawn: int = 30_000
    captioned: int = 5_000
    seed: int = 0
    drawing: Settings = Settings(k=2, samples=10, image=Sampling(temperature=1.0, top_p=0.9, guidance=1.5))
    captioning: Settings = Settings(k=2, samples=32, text=Sampling(temperature=1.0, top_p=0.9))

    def __post_init__(self) -> None:
        if min(self.drawn, self.captioned) < 2:
            raise ConfigError(f"drawn and captioned are 2 or more, but {self.drawn} and {self.captioned} were given")


@dataclass(frozen=True)
class Picture:
    """One picture of Karpathy's file: ``id`` is COCO's own, ``split`` train, restval, val or test."""

    id: str
    file: Path
    split: str
    captions: tuple[str, ...]

    @property
    def image(self) -> Image:
        return Image.open(self.file)


def read_karpathy(file: Path) -> list[Picture]:
    """All pictures of a ``dataset_coco.json``. Raises SourceError if it is none."""
    try:
        found = json.loads(file.read_bytes())["images"]
        return [
            Picture(
                str(int(one["cocoid"])),
                inside(file.parent, f"{one['filepath']}/{one['filename']}"),
                str(one["split"]),
                tuple(str(sentence["raw"]) for sentence in one["sentences"]),
            )
            for one in found
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SourceError(
            f"{file} is not Karpathy's dataset_coco.json ({type(error).__name__}: {error}); it holds "
            '{"images": [{"cocoid", "filepath", "filename", "split", "sentences": [{"raw"}]}]}'
        ) from None


def evaluate_coco(
    data: Path,
    models: str | Path,
    memory: Path,
    out: Path,
    features: Path | None = None,
    protocol: CocoProtocol = CocoProtocol(),
    generator: str = "generator",
) -> dict[str, Any]:
    """Draw and caption, with what is done kept in ``out``, and score: writes and returns ``out``/result.json.

    ``features`` is the TorchScript network of FID; without it there is only the Frechet distance of the encoder's
    vectors. Raises InputError if the memory holds pictures under examination, ``out`` is of another protocol, or there
    are fewer pictures than the protocol asks for.
    """
    folder = ModelFolder.open(models).path
    model = RACM3.from_pretrained(folder, memory, generator)
    network = Features(features) if features else None
    drawn, captioned = chosen(read_karpathy(data), protocol)
    assert model.memory is not None
    _check_apart(model.memory, [*(one for one, _ in drawn), *captioned])
    about = {
        **to_dict(protocol),
        "ids": {
            "drawn": digest_of_ids(f"{one.id} {caption}" for one, caption in drawn),
            "captioned": digest_of_ids(one.id for one in captioned),
        },
        "references": f"raw pictures, middle square, {model.image.image_size_px} px",
        "resize": network.resize if network else "none",
        "extractor": network.digest if network else "none",
        "encoder": model.encoder.fingerprint,
        "memory": about_memory(model.memory, memory.name),
        "weights": {name: weights_digest(folder / name) for name in (generator, "image-tokenizer", "encoder")},
        "words": "racm3.evaluation.words",
    }
    _check_same_run(out, about)
    with progress() as on_step:
        result = {
            "drawing": _drawing(model, drawn, protocol, network, out, on_step),
            "captioning": _captioning(model, captioned, protocol, out, on_step),
            "protocol": about | about_code(),
        }
    write_whole(out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def chosen(pictures: Sequence[Picture], protocol: CocoProtocol) -> tuple[list[tuple[Picture, str]], list[Picture]]:
    """Pictures of val2014 with one of their captions, drawn by seed; and the first of the test split.

    Raises InputError if there are too few.
    """
    of_val = [one for one in pictures if one.file.parent.name == "val2014" and one.captions]
    of_test = [one for one in pictures if one.split == "test" and one.captions]
    for name, asked, there in (("drawn", protocol.drawn, of_val), ("captioned", protocol.captioned, of_test)):
        if asked > len(there):
            raise InputError(
                f"{name} is {asked}, but there are {len(there)} such pictures; give all of them, or --set {name}=N"
            )
    rng = np.random.default_rng(protocol.seed)
    taken = [of_val[place] for place in rng.choice(len(of_val), protocol.drawn, replace=False)]
    return [(one, one.captions[rng.integers(len(one.captions))]) for one in taken], of_test[: protocol.captioned]


def _check_apart(memory: Memory, examined: Sequence[Picture]) -> None:
    """Raises InputError if a picture that is to be drawn or captioned can be retrieved."""
    if known := memory.known({one.id for one in examined}):
        raise InputError(
            f"the memory {memory.path} holds {len(known)} of the pictures under examination, such as {min(known)}; "
            "make it of others: captions_train2014.json, not captions_train2017.json"
        )


def _check_same_run(out: Path, about: dict[str, Any]) -> None:
    file = out / "protocol.json"
    if file.exists():
        # Below one name, so that not even the weights may differ: what is there is to be gone on with.
        check_comparable({"run": json.loads(file.read_bytes())}, {"run": about}, (str(out), "this command"))
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(about, indent=1) + "\n")


# Answers -----------------------------------------------------------------------------------------------------------


def _answers(
    file: Path, requests: Sequence[tuple[str, Callable[[], Document]]], model: RACM3, settings: Settings,
    keep: Callable[[str, Completion], dict[str, Any]], on_step: Callable[[int, int], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """One record a request, those of ``file`` first; the others are completed and written to it batch by batch.

    A request is its id and its document. ``keep`` stores an answer and gives what to record of it.
    """
    done = list(_records(file))
    if [one["id"] for one in done] != [id_ for id_, _ in requests[: len(done)]]:
        raise InputError(f"{file} holds other answers than those asked for; move it away to start again")
    write_whole(file, "".join(json.dumps(one) + "\n" for one in done))  # without what a kill has torn
    with open(file, "a", encoding="utf-8") as records:
        for batch in batches(requests[len(done) :]):
            documents = [make() for _, make in batch]
            completed = model.complete(documents, replace(settings, seed=settings.seed + len(done)))
            for (id_, _), one in zip(batch, completed, strict=True):
                done.append({"id": id_, "sources": [hit.id for hit in one.sources]} | keep(id_, one))
                records.write(json.dumps(done[-1]) + "\n")
            records.flush()
            on_step(len(done), len(requests))
    return done


def _records(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _drawing(
    model: RACM3,
    drawn: Sequence[tuple[Picture, str]],
    protocol: CocoProtocol,
    network: Features | None,
    out: Path,
    on_step: Report,
) -> dict[str, Scores]:
    """Scores of what is drawn, and of the best retrieved pictures instead, if any are retrieved."""
    folder = out / "drawn"
    folder.mkdir(exist_ok=True)

    def keep(id_: str, done: Completion) -> dict[str, Any]:
        (folder / f"{id_}.png").write_bytes(done.document.images[-1].png())
        return {}

    requests = [(one.id, partial(Document.of, caption, Hole("image"))) for one, caption in drawn]
    records = _answers(out / "drawn.jsonl", requests, model, protocol.drawing, keep, partial(on_step, "drawn"))
    captions = [caption for _, caption in drawn]
    side = model.image.image_size_px
    rows = {"retrieval": [partial(Image.open, folder / f"{one['id']}.png") for one in records]}
    assert model.memory is not None
    if all(one["sources"] for one in records):
        rows["returned"] = [partial(_first_picture, model.memory, one["sources"]) for one in records]
    true = [partial(_resized, one, side) for one, _ in drawn]
    looks: dict[str, Look] = {"fd": model.encoder.embed_images} | ({"fid": network} if network else {})
    references = {name: _moments(true, look, partial(on_step, f"true, {name}")) for name, look in looks.items()}
    scores: dict[str, Scores] = {}
    for row, pictures in rows.items():
        fits = [
            clip_score(model.encoder.embed_texts(texts), model.encoder.embed_images([make() for make in some]))
            for texts, some in zip(batches(captions), batches(pictures), strict=True)
        ]
        distances = {
            name: frechet_distance(_moments(pictures, look, partial(on_step, f"{row}, {name}")), references[name])
            for name, look in looks.items()
        }
        scores[row] = means({"clip_score": np.concatenate(fits)}) | distances
    return scores


def _captioning(
    model: RACM3, captioned: Sequence[Picture], protocol: CocoProtocol, out: Path, on_step: Report
) -> dict[str, Scores]:
    requests = [(one.id, partial(_to_caption, one)) for one in captioned]
    records = _answers(
        out / "captions.jsonl",
        requests,
        model,
        protocol.captioning,
        lambda _, done: {"caption": done.document.text or ""},
        partial(on_step, "captioned"),
    )
    references = [[words(caption) for caption in one.captions] for one in captioned]
    return {"retrieval": means({"cider_d": cider_d([words(one["caption"]) for one in records], references)})}


def _to_caption(one: Picture) -> Document:
    return Document.of(Hole("text"), one.image)


def _resized(one: Picture, side_px: int) -> Image:
    return one.image.resized(side_px)


def _first_picture(memory: Memory, ids: Sequence[str]) -> Image:
    """Of the best-ranked document that has one. Raises InputError if none has."""
    for item in memory.get(ids):
        if item.document.images:
            return item.document.images[0]
    raise InputError(f"of the documents {', '.join(ids)} none has a picture to return; use a memory of pictures")


def batches(values: Sequence[T]) -> list[Sequence[T]]:
    """All values, ``AT_ONCE`` at a time."""
    return [values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE)]


def _moments(pictures: Sequence[Callable[[], Image]], look: Look, on_step: Callable[[int, int], None]) -> Moments:
    """Of the features of pictures that are opened a batch at a time."""
    total: Moments | None = None
    for number, batch in enumerate(batches(pictures), start=1):
        part = Moments.of(look([make() for make in batch]))
        total = part if total is None else total + part
        on_step(min(number * AT_ONCE, len(pictures)), len(pictures))
    assert total is not None
    return total
