"""A training and an experiment of the study, tiny, from nothing to the page; and the page from stored results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from racm3.errors import ConfigError, InputError
from racm3.evaluation.scenes_protocol import Protocol
from racm3.model_folder import SCENES
from racm3.scenes.world import World
from study import runs as studies
from study.__main__ import main
from study.claims import CLAIMS, share_of_steps
from study.report import cell, load_results, table, write_report
from study.runs import (
    NAMES,
    SIZES,
    TRAININGS,
    VARIANTS,
    Study,
    is_done,
    rerun,
    seconds,
    selected,
    steps_to_reach,
)

ROOT = Path(__file__).parents[2]
SHAPE = ["model.width=16", "model.layers=1", "model.heads=2", "model.kv_heads=2", "model.head_dim=8"]
TINY = [*SHAPE, "model.mlp_width=16", "compile=false", "tokens_per_step=400", "loop.steps=4", "loop.look_every=2"]
USUAL = Protocol()
PROTOCOL = Protocol(
    n=2,
    trials=1,
    world=World(pretrain=1, train=1, memory=1, tests=2),
    drawing=replace(USUAL.drawing, samples=1),
    captioning=replace(USUAL.captioning, max_text_tokens=4),
)


def test_every_training_is_a_valid_run() -> None:
    for variant, seed in TRAININGS.values():
        run = VARIANTS[variant].run(seed, ["loop.threads=1"])
        assert (run.loop.seed, run.loop.threads) == (seed, 1)
        assert run.validation_documents
    assert {VARIANTS[f"alpha-{alpha}"].run(0).alpha for alpha in ("0", "0.1", "0.3", "1")} == {0, 0.1, 0.3, 1}
    assert VARIANTS["vanilla"].run(0).retrieved_shares == (1.0,)
    for size, without in SIZES:
        ours = VARIANTS[size].run(0)
        assert replace(VARIANTS[without].run(0), retrieved_shares=ours.retrieved_shares) == ours
    widths = [VARIANTS[size].run(0).model.width for size, _ in SIZES]
    assert widths == sorted(set(widths))


def test_what_is_selected() -> None:
    assert selected([]) == list(NAMES)
    assert selected(["alpha-0", "pictures"]) == ["pictures", *(f"alpha-0-seed-{seed}" for seed in (0, 1, 2))]
    assert selected(["vanilla-seed-1"]) == ["vanilla-seed-1"]
    with pytest.raises(ConfigError, match="did you mean 'pictures'"):
        selected(["picture"])


def test_when_a_curve_reaches_a_loss() -> None:
    """From 4 at step 100 to 2 at 200: at 3 in the middle."""
    steps, losses = [100, 200, 300], [4.0, 2.0, 2.5]
    assert [steps_to_reach(steps, losses, goal) for goal in (5, 4, 3, 2, 1)] == [100, 100, 150, 200, None]


def test_share_of_alpha_0s_steps_by_hand() -> None:
    """Alpha 0 ends at 2 after 400 steps; the one seed is there after 200, the other never, the third is not run."""

    def curve(*losses: float) -> dict[str, Any]:
        return {"curve": {"step": [100, 200, 300, 400], "loss": losses}}

    results = {f"alpha-0-seed-{seed}": curve(4, 3, 2.5, 2) for seed in (0, 1, 2)}
    results |= {"alpha-1-seed-0": curve(3, 2, 1.5, 1), "alpha-1-seed-1": curve(5, 4, 3, 2.5)}
    assert share_of_steps(results, "alpha-1") == [0.5, math.inf]
    assert share_of_steps(results, "alpha-0.3") == []


def test_time_of_a_run_that_was_taken_up_again() -> None:
    assert seconds([10, 20, 30, 5, 15]) == 30 + 15
    assert seconds([7]) == 7


@pytest.fixture(scope="module")
def docs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documentation with results of one training and one experiment."""
    folder = tmp_path_factory.mktemp("study")
    done = Study(folder / "docs" / "results" / "study", folder / "work", models, PROTOCOL, tuple(TINY))
    rerun(done, ["two-entities", "no-redundancy-skip-seed-1"])
    return folder / "docs"


def test_a_training_goes_from_nothing_to_a_result(docs: Path) -> None:
    result = json.loads((docs / "results" / "study" / "no-redundancy-skip-seed-1.json").read_text())
    assert (result["variant"], result["seed"], result["settings"]["skip"]) == ("no-redundancy-skip", 1, False)
    assert result["curve"]["step"] == [2, 4]
    assert all(loss > 0 for loss in result["curve"]["loss"])
    assert [(row["documents"], row["entities"]) for row in result["rows"]] == [
        (2, "seen"),
        (2, "novel"),
        (0, "seen"),
        (0, "novel"),
    ]
    protocol = result["protocol"]
    assert {"ids", "n", "resize", "extractor", "memory", "drawing", "commit", "elapsed_s", "encoder"} <= set(protocol)
    assert set(protocol["weights"]) == {"generator", "image-tokenizer", "encoder", "judge"}
    assert protocol["memory"]["hash"]
    assert protocol["drawing"]["image"]["context_aware"] == protocol["captioning"]["text"]["context_aware"] == 1


def test_a_training_that_was_only_to_be_examined_is_not_trained_again(docs: Path, models: Path) -> None:
    study = Study(docs / "results" / "study", docs.parent / "work", models, PROTOCOL, tuple(TINY))
    file = study.file("no-redundancy-skip-seed-1")
    before = json.loads(file.read_text())
    file.unlink()
    rerun(study, ["no-redundancy-skip-seed-1"])
    after = json.loads(file.read_text())
    for result in (before, after):
        del result["protocol"]["elapsed_s"]
    assert after == before


def test_what_is_done_is_not_done_again(
    docs: Path, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(studies, "_train", None)
    monkeypatch.setattr(studies, "_experiment", None)
    done = Study(docs / "results" / "study", docs / "none", models, PROTOCOL, (*TINY, "loop.threads=1"))
    rerun(done, ["two-entities", "no-redundancy-skip-seed-1"])
    assert "study: 0 to do: nothing" in capsys.readouterr().err
    assert not is_done(replace(done, protocol=replace(PROTOCOL, trials=2)), "two-entities")
    assert "two-entities.json is of other settings or weights (trials): again" in capsys.readouterr().err
    assert not is_done(replace(done, train=(*TINY, "alpha=0.2")), "no-redundancy-skip-seed-1")
    assert not is_done(replace(done, models=SCENES), "two-entities")
    assert not is_done(done, "pictures")


def test_the_page_is_made_of_the_files(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--docs", str(docs)]) == 0
    page = (docs / "results.md").read_text()
    assert page.count("| not run |") >= len(CLAIMS) - 1
    result = json.loads((docs / "results" / "study" / "two-entities.json").read_text())
    assert "\n".join(table(result["rows"])) in page
    assert "| no-redundancy-skip | 1 |" in page
    assert "| alpha-0.1 | not run |" in page
    assert "](results/two-entities.webp)" in page
    assert (docs / "results" / "two-entities.webp").exists()
    assert capsys.readouterr().out == f"wrote {docs / 'results.md'}\n"


THEIRS = '''
import numpy as np

from racm3.document import Document, Hole
from racm3.evaluation.bootstrap import means
from study.experiments import Found


def drawings(lab):
    """How many pictures are drawn."""
    asked = [Document.of(caption, Hole("image")) for _, caption in lab.tests("novel")]
    done = lab.retrieval.complete(asked, lab.single)
    return Found([{"entities": "novel"} | means({"drawn": np.array([len(one.document.images) for one in done])})])
'''


def test_an_experiment_of_another_package(
    docs: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_study.py").write_text(THEIRS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    study = Study(tmp_path / "docs" / "results" / "study", docs.parent / "work", models, PROTOCOL)
    rerun(study, ["their_study:drawings"])
    assert is_done(study, "their_study:drawings")
    page = write_report(tmp_path / "docs").read_text(encoding="utf-8")
    assert "## their_study:drawings\n\nHow many pictures are drawn.\n\n| entities | drawn | n |" in page
    assert "| novel | 1.00 | 2 |" in page
    with pytest.raises(ConfigError, match="experiment 'their_study:widths' cannot be imported"):
        selected(["their_study:widths"])


def test_results_that_do_not_belong_together(docs: Path, tmp_path: Path) -> None:
    name = "no-redundancy-skip-seed-1"
    result = json.loads((docs / "results" / "study" / f"{name}.json").read_text())
    (tmp_path / f"{name}.json").write_text(json.dumps(result))
    other: dict[str, Any] = result | {"protocol": result["protocol"] | {"n": 3}}
    (tmp_path / "alpha-0-seed-0.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=f"alpha-0-seed-0 and {name} were not measured alike.*: n: 3 and 2"):
        load_results(tmp_path)
    (tmp_path / "alpha-0-seed-0.json").rename(tmp_path / "alpha-9.json")
    with pytest.raises(InputError, match=r"alpha-9.json is no result of the study"):
        load_results(tmp_path)
    with pytest.raises(InputError, match="there are no results in .*none"):
        load_results(tmp_path / "none")


def test_settings_without_a_rerun_are_not_silently_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "pictures"]) == 2
    assert "add --rerun" in capsys.readouterr().err


def test_cells_by_hand() -> None:
    assert cell("entity", 0.834, (0.78, 0.879)) == "83 (78 to 88)"
    assert cell("fd", 12.345, (11, 13.456)) == "12.35 (11.00 to 13.46)"
    assert cell("entity", 1.0, (1.0, 1.0)) == "100"


def synthetic(share: float) -> dict[str, Any]:
    """Results in which retrieval has ``share`` right everywhere and all else 0.1, and every loss falls from 4 to 2, or
    a little below that where alpha 0.1 is best."""

    def row(score: float, **labels: Any) -> dict[str, Any]:
        names = ("all_correct", "entity", "entity_named", "both", "right", "style", "untouched")
        scores = dict.fromkeys(names, score) | {"fd": 100 * (1 - score), "cider_d": 10 * score, "untouched": 1.0}
        return labels | scores | {"n": 100, "interval": {name: [value, value] for name, value in scores.items()}}

    models = {"retrieval": share, "vanilla": 0.1, "returned": 0.0}
    splits = ("seen", "novel")
    results: dict[str, Any] = {
        name: {"rows": [row(score, entities=split, model=model) for split in splits for model, score in models.items()]}
        for name in ("pictures", "captions")
    }
    results["one-shot"] = {
        "rows": [
            row(share if model == "retrieval" else 0.5, by=by, model=model, contexts=count)
            for by in ("picture", "label")
            for model in ("retrieval", "vanilla")
            for count in (1, 2, 4, 8)
        ]
    }
    pairs = {"retrieval": share, "given": share, "given small": share, "vanilla": 0.1}
    results["two-entities"] = {"rows": [row(score, model=model) for model, score in pairs.items()]}
    results["tasks"] = {
        "rows": [
            row(models[model], task=task, entities="seen" if task == "style" else "novel", model=model)
            for task in ("infill", "edit", "style")
            for model in ("retrieval", "vanilla")
        ]
    }
    when = {"before": 0.1, "after": share}
    results["knowledge"] = {
        "rows": [
            row(score, entities="novel", **{"novel documents": name, "in memory": 5, "added in s": 0.1})
            for name, score in when.items()
        ]
    }
    given = {
        "no document": 0.02,
        "1 document": (share + 0.1) / 2,
        "2 documents": share,
        "2 documents, text alone": 0.1,
        "2 documents, image alone": 0.2,
    }
    results["documents"] = {"rows": [row(score, given=what) for what, score in given.items()]}
    for name, (variant, _) in TRAININGS.items():
        best = variant in ("alpha-0.1", "small", "medium", "large")
        late = 4 if share < 0.5 else 1  # of four looks, the one at which alpha 0.1 is where alpha 0 ends
        least = 2.0 if share < 0.5 else 1.9
        losses = [least if best and look >= late else 4.0 - look / 2 for look in range(5)]
        results[name] = {
            "parameters": 1e6,
            "curve": {"step": [1, 2, 3, 4, 5], "loss": losses},
            "rows": [
                row(
                    share if (best or variant == "alpha-1") and bool(documents) is best else 0.1,
                    entities=split,
                    documents=documents,
                )
                for split in splits
                for documents in (2, 0)
            ],
        }
    return results


@pytest.mark.parametrize(("share", "holds"), [(0.95, True), (0.05, False)])
def test_claims_hold_where_the_numbers_say_so(share: float, holds: bool) -> None:
    for claim in CLAIMS:
        found, verdict = claim.judge(synthetic(share))
        assert verdict is holds, (claim.claim, found)
        assert any(digit in found for digit in "0123456789")
        with pytest.raises(LookupError):
            claim.judge({})


def test_the_stored_page_is_the_one_of_the_stored_results(tmp_path: Path) -> None:
    """docs/results.md is what ``python -m study`` makes of docs/results/study now."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "study").symlink_to(ROOT / "docs" / "results" / "study")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert page == (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "run python -m study"
