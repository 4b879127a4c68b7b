"""The protocol on tiny random models: shapes, and that each row is what it claims to be."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from racm3 import cli
from racm3.document import Document, Hole, Image
from racm3.errors import ConfigError, InputError, MemoryStoreError
from racm3.evaluation.scenes_protocol import (
    ROWS,
    Protocol,
    accuracy,
    best_retrieved,
    caption_scores,
    entity_named,
    examine,
    pixels,
    through_tokenizer,
    world_memory,
)
from racm3.memory.memory import Memory
from racm3.model_folder import SCENES
from racm3.pipeline import RACM3, Completion, Request
from racm3.retriever.retriever import Hit, Retriever
from racm3.scenes.caption import FORMS, describe
from racm3.scenes.draw import Scene, draw
from racm3.scenes.judges import Judge, Verdict
from racm3.scenes.world import World
from racm3.tokens.codec import image_codes

FOX = Scene(("fox",), "snow", "top left")
APPLE = Scene(("red apple",), "beach")
TESTS = [(scene, caption) for _, scene, caption in islice(World().scenes("test-seen"), 3)]
TINY_WORLD = World(pretrain=1, train=1, memory=1, tests=2)
QUICK = Protocol(
    n=2,
    world=TINY_WORLD,
    drawing=replace(Protocol().drawing, samples=1),
    captioning=replace(Protocol().captioning, max_text_tokens=4),
)


# Scores ----------------------------------------------------------------------------------------------------------


def test_accuracy_counts_each_question_and_all_three() -> None:
    verdict = Verdict(["fox", "red apple"], ["snow", "snow"], ["top left", "centre"], ["plain", "sepia"])
    shares = {"entity": 1.0, "background": 0.5, "position": 1.0, "all_correct": 0.5, "n": 2}
    assert shares.items() <= accuracy(verdict, [FOX, APPLE]).items()


def test_all_correct_is_not_the_least_of_the_three() -> None:
    verdict = Verdict(["fox", "fox"], ["sea", "beach"], ["top left", "centre"], ["plain", "plain"])
    assert accuracy(verdict, [FOX, APPLE])["all_correct"] == 0


@pytest.mark.parametrize(
    ("caption", "entity", "named"),
    [
        ("a fox at the top left in the snow", "fox", True),
        ("two foxes in the snow", "fox", True),
        ("a fox and a castle in the snow", "castle", True),
        ("a teddy bear in the snow", "bear", False),
        ("a teddy bear in the snow", "teddy bear", True),
        ("some teddy bear is somewhere", "bear", False),  # not one of our captions
        ("some teddy bear is somewhere", "teddy bear", True),
        ("here a bear, there a teddy bear", "bear", True),
        ("A Fox.", "fox", True),
        ("an oxcart", "ox", False),
        ("(nothing)", "fox", False),
    ],
)
def test_an_entity_is_named_by_its_whole_name(caption: str, entity: str, named: bool) -> None:
    assert entity_named(caption, entity) is named


def test_captions_are_scored_against_every_way_to_say_it() -> None:
    scenes = [scene for scene, _ in TESTS]
    for form in range(FORMS):
        right = caption_scores([describe(scene, form) for scene in scenes], scenes)
        assert right["entity_named"] == right["background_told"] == right["position_told"] == 1
        assert 3 < right["cider_d"] <= 10
    wrong = caption_scores(["a thing"] * len(scenes), scenes)
    assert wrong["entity_named"] == wrong["background_told"] == 0
    there = next(scene for scene in scenes if scene.position != "centre")
    elsewhere = caption_scores([describe(replace(there, position="centre"))], [there])
    assert (elsewhere["entity_named"], elsewhere["background_told"], elsewhere["position_told"]) == (1, 1, 0)
    blurred = caption_scores([describe(there).replace(there.entities[0], "magnle")], [there])
    assert (blurred["entity_named"], blurred["background_told"], blurred["position_told"]) == (0, 1, 1)
    assert wrong["cider_d"] < 0.5


# What is judged --------------------------------------------------------------------------------------------------


def test_the_ceiling_is_the_true_picture_encoded_and_decoded(retrieval: RACM3) -> None:
    truth = [Image(draw(scene)) for scene, _ in TESTS]
    one_by_one = [retrieval.codec.pixels(image_codes([image], retrieval.image)[0]) for image in truth]
    for found, slow in zip(through_tokenizer(truth, retrieval.image), one_by_one, strict=True):
        assert np.abs(found.pixels.astype(int) - slow).max() <= 1  # a batch sums in another order


def test_returned_is_the_best_ranked_hit(retrieval: RACM3) -> None:
    requests = [Document.of(caption, Hole("image")) for _, caption in TESTS]
    assert retrieval.memory is not None
    hits = Retriever(retrieval.memory, retrieval.encoder).retrieve(requests, k=2)
    done = retrieval.complete(requests, QUICK.drawing)
    assert [best_retrieved(d) for d in done] == [own[0].document.images[0] for own in hits]


def test_nothing_retrieved_is_an_error(retrieval: RACM3) -> None:
    text_only = Hit("t", 1.0, Document.of("a fox"), {}, "test")
    with pytest.raises(InputError, match="no picture was retrieved for 'a fox'"):
        best_retrieved(Completion(Document.of("a fox"), (text_only,), Request(Document.of("a fox")), (), retrieval))


def test_every_row_is_what_it_claims(retrieval: RACM3, vanilla: RACM3, judge: Judge) -> None:
    scenes, truth = [scene for scene, _ in TESTS], [Image(draw(scene)) for scene, _ in TESTS]
    heard: list[tuple[str, int, int]] = []
    found = examine(TESTS, retrieval, vanilla, judge, QUICK, lambda *at: heard.append(at))
    requests = [Document.of(caption, Hole("image")) for _, caption in TESTS]
    drawn = retrieval.complete(requests, QUICK.drawing)
    drawn_without = vanilla.complete(requests, replace(QUICK.drawing, k=0))
    pictures = {
        "retrieval": [done.document.images[0] for done in drawn],
        "vanilla": [done.document.images[0] for done in drawn_without],
        "returned": [best_retrieved(done) for done in drawn],
        "ceiling": through_tokenizer(truth, retrieval.image),
        "judge": truth,
    }
    assert set(pictures) == set(ROWS)
    for row, images in pictures.items():
        expected = accuracy(judge.verdict(pixels(images)), scenes)
        assert {key: found[row][key] for key in expected if key != "interval"}.items() <= expected.items(), row
    assert found["judge"]["fd"] == 0 < found["ceiling"]["fd"]
    assert not any(done.sources for done in drawn_without)
    assert all(len(done.sources) == 2 for done in drawn)
    assert found["caption"].keys() == {"retrieval", "vanilla"}
    kinds = {"pictures, retrieval", "pictures, vanilla", "captions, retrieval", "captions, vanilla"}
    assert {what for what, _, _ in heard} == kinds
    assert all(0 < done <= total for _, done, total in heard)


@pytest.mark.parametrize("split", ["test-seen", "test-novel"])
def test_the_shipped_judge_knows_true_renders(split: str) -> None:
    scenes = [scene for _, scene, _ in islice(World().scenes(split), 100)]
    verdict = Judge.from_pretrained(SCENES / "judge").verdict(np.stack([draw(scene) for scene in scenes]))
    shares = accuracy(verdict, scenes)
    assert min(shares["background"], shares["position"]) >= 0.95
    assert shares["entity"] >= 0.8


# The whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 3])
def test_n_is_at_most_what_there_is(n: int) -> None:
    with pytest.raises(ConfigError, match=f"n is {n}; each test split holds 2 pictures"):
        Protocol(n=n, world=TINY_WORLD)


def test_the_command_prints_tables_and_ends_with_one_json_line(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    memory, out = tmp_path / "made" / "memory", tmp_path / "results" / "scenes.json"
    sizes = ["world.memory=1", "world.train=1", "world.pretrain=1", "n=2", "trials=2", "world.tests=2"]
    settings = [*sizes, "drawing.samples=1", "captioning.max_text_tokens=4"]
    command = ["evaluate", "scenes", "--models", str(models), "--memory", str(memory), "--out", str(out)]
    assert cli.main([*command, "--set", *settings]) == 0
    printed = capsys.readouterr().out
    results = json.loads(printed.splitlines()[-1])
    assert results == json.loads(out.read_text(encoding="utf-8"))
    assert list(results) == ["seen", "novel", "tasks", "protocol"]
    for split in ("seen", "novel"):
        assert list(results[split]) == [*ROWS, "caption"]
        for row in ROWS:
            scores = ["entity", "background", "position", "all_correct", "clip_score", "fd"]
            assert sorted(results[split][row]) == sorted([*scores, "n", "interval"])
            assert sorted(results[split][row]["interval"]) == sorted(scores)
            assert results[split][row]["n"] == 2
            assert all(0 <= results[split][row][key] <= 1 for key in scores[:4])
        for row in ("retrieval", "vanilla"):
            told = ["entity_named", "background_told", "position_told", "cider_d"]
            assert list(results[split]["caption"][row]) == [*told, "n", "interval"]
    protocol = results["protocol"]
    assert protocol["ids"] == {split: [f"test-{split}-0000", f"test-{split}-0001"] for split in ("seen", "novel")}
    opened = Memory.open(memory, protocol["encoder"])
    assert protocol["memory"]["documents"] == len(opened) == len(TINY_WORLD.seen) + len(TINY_WORLD.novel)
    assert protocol["world"]["tests"] == protocol["n"] == 2
    assert list(results["tasks"]) == ["infill", "edit", "style", "one_shot", "one_shot_by_label"]
    assert results["tasks"]["one_shot"]["novel"]["vanilla"]["n"] == 2
    for shown in (*ROWS, "all correct", "CIDEr-D", "n = 2", "untouched", "One-shot"):
        assert shown in printed

    # The memory that is there is used again, and completed if some of it is missing, but not for another world.
    whole = opened.fingerprint
    opened.remove(opened.ids[3:700])
    assert world_memory(memory, TINY_WORLD, RACM3.from_pretrained(models).encoder).fingerprint == whole
    with pytest.raises(MemoryStoreError, match=r"and not the \d+ of World\(seed=1"):
        world_memory(memory, replace(TINY_WORLD, seed=1), RACM3.from_pretrained(models).encoder)


def test_without_models_the_cure_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "scenes", "--models", str(tmp_path)]) == 2
    assert "racm3 train judge" in capsys.readouterr().err
