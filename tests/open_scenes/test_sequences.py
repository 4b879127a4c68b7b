"""Endless sequences: a function of the step, in the documents' own markup, and copyable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.errors import ConfigError
from racm3.open_scenes.open_world import World
from racm3.open_scenes.sequences import Kinds, OpenBatches, Planner, around, masked_order
from racm3.open_scenes.wording import STYLE_PHRASES
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.markup import Markup
from racm3.tokens.masking import mask, unmask
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import Vocabulary

PATCH = 6
KINDS = Kinds()


def batches(kinds: Kinds = KINDS, sequences: int = 4) -> OpenBatches:
    torch.manual_seed(0)
    image = FSQImageTokenizer(FSQConfig(96, PATCH, (4, 4, 3), encoder_width=16, decoder_width=16)).eval()
    text = TextTokenizer.train(["a fox on the left"], 256)
    markup = Markup(Vocabulary(text.size, image.codebook_size), 256)
    return OpenBatches(Planner(World.of("seen"), kinds, PATCH), text, image, markup, sequences=sequences)


def test_a_batch_is_a_function_of_its_step_and_its_parts_are_the_whole() -> None:
    one, other = batches(), batches()
    assert np.array_equal(one.batch(3).ids, other.batch(3).ids)
    assert not np.array_equal(one.batch(3).ids[:50], one.batch(4).ids[:50])
    halves = [one.batch(3, part, 2) for part in range(2)]
    assert sum(len(half.ids) for half in halves) == len(one.batch(3).ids)
    assert halves[0].normaliser == one.batch(3).normaliser
    with pytest.raises(ConfigError, match="sequences"):
        one.batch(0, 0, 5)


def test_sequences_are_documents_in_the_markup_that_prompts_have() -> None:
    made = batches(sequences=8)
    v = made.markup.vocabulary
    batch = made.batch(1)
    for start, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
        ids, _ = unmask(np.append(batch.ids[start:end], batch.targets[end - 1]), v)
        ends = np.flatnonzero(ids == v.end) + 1
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            made.markup.from_ids(ids[first:last])


def test_the_main_entity_has_the_size_and_the_phase_of_a_source() -> None:
    rng = np.random.default_rng(0)
    planner = Planner(World.of("seen"), Kinds(), PATCH)
    for sources in ("twice", "distracted", "once", "two", "three"):
        for _ in range(20):
            plan = planner.plan(rng, sources=sources)
            shown = [one for document in plan.sources for one in document.scene.placed]
            for own in plan.main.scene.placed:
                same = [
                    one for one in shown if (one.cutout, one.size, one.mirrored) == (own.cutout, own.size, own.mirrored)
                ]
                assert any((one.left - own.left) % PATCH == (one.top - own.top) % PATCH == 0 for one in same)


def test_the_entity_counts_more_than_the_background_and_the_sources() -> None:
    made = batches(
        Kinds(twice=1, distracted=0, once=0, nothing=0, two=0, three=0, labels=0, style=0, caption=0, region=0),
        sequences=1,
    )
    plan = made.planner.plan(np.random.default_rng(0))
    ((ids, weights),) = made.sequences_of([plan], np.random.default_rng(0))
    main = made.drawn([plan.main])[0]
    of_main = weights[-len(main.ids) - 1 : -1]
    grid = main.shows[main.shows >= 0].reshape(16, 16)
    near = around(grid > 0.02, 2)
    of_codes = of_main[main.shows >= 0].reshape(16, 16)
    assert of_codes[near].min() == 1.0  # an entity and the background around it: else entities are drawn everywhere
    assert of_codes[~near].max() == np.float32(made.weights.ground)
    assert len(ids) == len(weights)


def test_on_the_same_ground_edges_can_be_copied() -> None:
    made = batches(replace(KINDS, same_ground=1.0))
    plan = made.planner.plan(np.random.default_rng(3), sources="once")
    (source,) = plan.sources
    assert source.scene.ground == plan.main.scene.ground
    (own,) = plan.main.scene.placed
    if len(source.scene.placed) == 1 and min(own.left, own.top, source.scene.placed[0].left) > 0:
        told = made.drawn([source, plan.main])
        shown = [set(one.ids[one.shows > 0].tolist()) for one in told]
        assert shown[1] <= shown[0] or len(shown[1] - shown[0]) < 0.3 * len(shown[1])


def test_labels_are_new_words_that_only_the_sources_tell() -> None:
    rng = np.random.default_rng(0)
    planner = Planner(World.of("seen"), Kinds(), PATCH)
    words = set()
    for _ in range(20):
        plan = planner.plan(rng, sources="labels")
        shown = {source.scene.placed[0].cutout: source.caption for source in plan.sources}
        assert plan.task == "caption"
        assert plan.main.caption == shown[plan.main.scene.placed[0].cutout]
        words.add(plan.main.caption)
    assert len(words) == 20


def test_a_style_is_named_and_shown_and_sepia_is_held_out() -> None:
    rng = np.random.default_rng(0)
    planner = Planner(World.of("seen"), Kinds(), PATCH, ("plain",))
    for _ in range(20):
        plan = planner.plan(rng, sources="style")
        style = plan.main.scene.style
        assert style not in ("plain", "sepia")
        assert STYLE_PHRASES[style] in plan.main.caption
        assert any(source.scene.style == style for source in plan.sources)


def test_around() -> None:
    shown = np.zeros((5, 6), bool)
    shown[0, 3] = True
    assert around(shown, 1).sum() == 6
    assert around(shown, 0).sum() == 1


def test_masked_order_says_where_each_token_stood() -> None:
    v = Vocabulary(10, 10)
    ids = np.array([v.doc, v.text, 40, 41, 42, 43, v.end])
    spans = [(2, 3), (4, 6)]
    order = masked_order(len(ids), spans)
    masked = mask(ids, spans, v)
    assert len(order) == len(masked)
    assert np.array_equal(masked[order >= 0], ids[order[order >= 0]])


def test_a_hidden_region_has_at_most_a_row_a_mask() -> None:
    made = batches(Kinds(caption=0, region=1, wordless=0.5), sequences=6)
    for step in range(3):
        batch = made.batch(step)
        assert made.markup.vocabulary.is_infill(batch.ids).any()


def test_what_is_read_of_the_main_picture_is_noisy_now_and_then_and_nothing_else_is() -> None:
    some = batches(sequences=6)
    batch = some.batch(0)
    v = some.markup.vocabulary
    follows = np.setdiff1d(np.arange(1, len(batch.ids)), batch.offsets)
    changed = follows[batch.ids[follows] != batch.targets[follows - 1]]
    assert 0 < len(changed) < 0.15 * len(follows)
    assert batch.main[changed - 1].all()
    assert v.is_image(batch.ids[changed]).all()
    assert v.is_image(batch.targets[changed - 1]).all()
    near = some.digits[batch.ids[changed] - v.image_start] != some.digits[batch.targets[changed - 1] - v.image_start]
    assert (near.sum(1) == 1).mean() > 0.5
