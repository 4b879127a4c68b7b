"""Attribution against its definition written out, and where truth is known: on the shipped model."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from racm3.attribution import COLOURS, FRAME_PX, SCALE, attention_mass, attribute, overlay
from racm3.document import Document, Image
from racm3.generator.engine import Engine
from racm3.generator.model import Generator, GeneratorConfig
from racm3.pipeline import RACM3
from racm3.scenes.caption import describe
from racm3.scenes.draw import Scene, draw
from racm3.scenes.world import World
from racm3.tokens.codec import token_documents
from racm3.tokens.vocabulary import Vocabulary

V = Vocabulary(text_size=5, image_size=9)
DOCUMENTS = [[V.doc, V.image, 45, 46, V.end], [V.doc, V.text, 40, V.image, 47, V.end]]
MAIN = [V.doc, V.text, 41, V.image]
ANSWER = [45, 47, 48]


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(V.size, 32, 3, 4, 2, 8, 32, context_tokens=64))
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return Engine(generator.eval(), V)


def likelihood(engine: Engine, *documents: list[int]) -> np.ndarray:
    prompt = [id for document in documents for id in document] + MAIN
    with torch.inference_mode():
        logits = engine.generator.logits(engine.generator(torch.tensor([[*prompt, *ANSWER]])))[0].log_softmax(-1)
    return np.array([float(logits[len(prompt) - 1 + i, id]) for i, id in enumerate(ANSWER)])


def test_a_gain_is_the_mean_of_what_is_added_to_the_other_and_alone(engine: Engine) -> None:
    one, two = DOCUMENTS
    found = attribute(engine, DOCUMENTS, [*one, *two, *MAIN], ANSWER)
    nothing, both = likelihood(engine), likelihood(engine, one, two)
    first, second = likelihood(engine, one), likelihood(engine, two)
    expected = np.stack([both - second + first - nothing, both - first + second - nothing], axis=1) / 2
    assert found.gains == pytest.approx(expected, abs=1e-4)
    assert found.gains.sum(axis=1) == pytest.approx(both - nothing, abs=1e-4)  # nothing is lost, nothing counted twice


def test_places_are_tokens_that_are_equal_or_else_looked_at(engine: Engine) -> None:
    found = attribute(engine, DOCUMENTS, [*DOCUMENTS[0], *DOCUMENTS[1], *MAIN], ANSWER)
    assert [places.shape for places in found.places] == [(3, 5), (3, 6)]
    assert all(places.sum(axis=1) == pytest.approx(1) for places in found.places)
    assert found.places[0][0].tolist() == [0, 0, 1, 0, 0]
    assert found.places[1][1].tolist() == [0, 0, 0, 0, 1, 0]
    assert (found.places[0][1] > 0).all()  # 47 is not there
    for k, drawn in enumerate(found.drawn):
        assert drawn.sum() == pytest.approx(np.maximum(found.gains[:, k], 0).sum())


def test_attention_is_that_of_the_generator(engine: Engine) -> None:
    """All of a row's attention is 1 a head; and values that are one-hot of their position show the same weights."""
    ids = torch.tensor([*DOCUMENTS[0], *MAIN, *ANSWER])
    count, generator = len(ids) - 1, engine.generator
    mass = attention_mass(generator, ids, len(ANSWER), count)
    config = generator.config
    assert mass.sum(axis=1) == pytest.approx(config.layers * config.heads)
    seen: list[torch.Tensor] = []
    scaled = torch.nn.functional.scaled_dot_product_attention

    def spy(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: object) -> torch.Tensor:
        positions = torch.eye(k.shape[2]).expand(1, k.shape[1], -1, -1)
        seen.append(scaled(q, k, positions, **given)[0])  # type: ignore[arg-type]
        return scaled(q, k, v, **given)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        generator(ids[None, :-1])
    expected = torch.stack(seen).sum((0, 1))[-len(ANSWER) :]
    assert mass == pytest.approx(expected.numpy(), abs=1e-4)


def test_without_documents_there_is_nothing_to_draw_on(engine: Engine) -> None:
    found = attribute(engine, [], MAIN, ANSWER)
    assert (found.gains.shape, found.places) == ((3, 0), ())


def test_a_copied_region_is_attributed_to_the_document_it_was_copied_from() -> None:
    """Two documents of different novel entities, and a third picture of one of them: which, and where in it?"""
    model, world = RACM3.from_pretrained("scenes"), World()
    right, places = [], []
    for turn, names in enumerate(zip(*[islice(world.novel, 6)] * 2, strict=True)):
        shown = [Scene((name,), *world.combinations(name)[0]) for name in names]
        asked = Scene((names[turn % 2],), *world.combinations(names[turn % 2])[60])
        documents = [
            model.markup.to_ids(document)
            for document in token_documents(
                [Document.of(describe(scene), Image(draw(scene))) for scene in (*shown, asked)], model.text, model.image
            )
        ]
        (*retrieved, main), codes = documents, model.markup.codes_per_image
        start = len(main) - 1 - codes
        prompt = [id for document in retrieved for id in document] + main[:start]
        found = attribute(model.engine, retrieved, prompt, main[start:-1])
        for cell, source in zip(box_cells(asked), box_cells(shown[turn % 2]), strict=True):
            place = len(retrieved[turn % 2]) - 1 - codes + source
            if retrieved[turn % 2][place] == main[start + cell] and main[start + cell] not in retrieved[1 - turn % 2]:
                right.append(found.gains[cell].argmax() == turn % 2)
                places.append(found.places[turn % 2][cell].argmax() == place)
    assert len(right) > 30
    assert np.mean(right) >= 0.95
    assert np.mean(places) >= 0.95


def test_the_overlay_shows_which_source_and_where() -> None:
    picture = Image(np.full((4, 4, 3), 100, np.uint8))
    gains = np.zeros((2, 2, 2))
    gains[0, 0, 0], gains[1, 1, 1] = 2.0, 1.0
    drawn = np.array([[1.0, 0.0], [0.0, 0.0]])
    sheet = np.asarray(overlay(picture, gains, [(picture, drawn), (None, drawn), (picture, drawn)][:2]))
    side = 4 * SCALE + 2 * FRAME_PX
    assert sheet.shape == (side, 2 * side, 3)  # a source that is a text has no panel
    first, last = sheet[FRAME_PX, FRAME_PX], sheet[side - FRAME_PX - 1, side - FRAME_PX - 1]
    assert first.tolist() == pytest.approx([100 + 0.7 * (c - 100) for c in COLOURS[0]], abs=1)
    assert last.tolist() == pytest.approx([100 + 0.35 * (c - 100) for c in COLOURS[1]], abs=1)
    assert sheet[FRAME_PX, side - FRAME_PX - 1].tolist() == [100] * 3
    assert sheet[0, side].tolist() == list(COLOURS[0])
    assert sheet[FRAME_PX, side + FRAME_PX].tolist() == [100] * 3  # lit
    assert sheet[FRAME_PX, 2 * side - FRAME_PX - 1].tolist() == [224] * 3


def box_cells(scene: Scene) -> list[int]:
    """The codes of the 8 x 8 grid that the scene's entity covers."""
    ((left, top, side),) = scene.boxes
    return [
        row * 8 + column
        for row in range(top // 8, (top + side) // 8)
        for column in range(left // 8, (left + side) // 8)
    ]
