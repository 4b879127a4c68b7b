from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from racm3.errors import ConfigError, SourceError
from racm3.generator.model import Generator, GeneratorConfig
from racm3.tokens.image_tokenizer import FSQConfig, FSQImageTokenizer
from racm3.tokens.markup import ImageCodes, Markup, TextIds
from racm3.tokens.masking import part_spans, unmask
from racm3.tokens.text_tokenizer import TextTokenizer
from racm3.tokens.vocabulary import MAX_MASKS, Vocabulary
from racm3.training import generator_recipe as module
from racm3.training.generator_recipe import (
    Batches,
    GeneratorRun,
    MaskingConfig,
    PackedBatch,
    ShapeConfig,
    can_compile,
    draw_side,
    packed_loss,
    train_generator,
)
from racm3.training.loop import LoopConfig
from racm3.training.optimiser import OptimiserConfig
from racm3.training.prepare import TrainingSet
from racm3.util.contact_sheet import GAP_PX

TEXT = TextTokenizer.train(["a fox in the snow"], 256)
V = Vocabulary(TEXT.size, 5)
GRID = (2, 2)
MARKUP = Markup(V, codes_per_image=4)
SHAPE = ShapeConfig(width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=16, context_tokens=64)
RUN = GeneratorRun(
    model=SHAPE,
    optimiser=OptimiserConfig(lr=1e-2, muon_lr=1e-2, warmup_steps=2),
    loop=LoopConfig(steps=6, dtype="float32", log_every_s=0),
    tokens_per_step=120,
    rename_share=0.0,
)
ROWS = 9


def dataset(count: int = ROWS, grid: tuple[int, int] = GRID, neighbours: bool = True) -> TrainingSet:
    """Documents that tell by their text which they are; each has the next two as its neighbours."""
    rng = np.random.default_rng(0)
    markup = Markup(V, grid[0] * grid[1])
    ids = []
    for row in range(count):
        codes = tuple(rng.integers(5, size=markup.codes_per_image).tolist())
        ids.append(np.array(markup.to_ids((TextIds((row, *range(row % 3))), ImageCodes(codes))), np.int32))
    following = (np.arange(count)[:, None, None] + np.array([[[1, 2], [2, 3]]])) % count  # (N, R, K)
    return TrainingSet(ids, following if neighbours else None)


def batches(run: GeneratorRun = RUN, **kwargs: int) -> Batches:
    return Batches(dataset(**kwargs), MARKUP, GRID, run)


def documents(ids: np.ndarray) -> list[np.ndarray]:
    """A sequence, unmasked, cut behind every </doc>."""
    return np.split(ids, np.flatnonzero(ids == V.end)[:-1] + 1)


# Sequences


def test_a_batch_is_a_function_of_the_step_alone() -> None:
    one, other = batches(), batches()
    forward = [one.batch(step) for step in range(20)]
    backward = [other.batch(step) for step in reversed(range(20))][::-1]
    for batch, again in zip(forward, backward, strict=True):
        for name, value in asdict(batch).items():
            assert np.array_equal(value, getattr(again, name)), name
    assert not np.array_equal(forward[0].ids, forward[1].ids)
    reseeded = batches(replace(RUN, loop=replace(RUN.loop, seed=1)))
    assert not np.array_equal(reseeded.batch(0).ids, forward[0].ids)


def sequences(batch: PackedBatch) -> list[tuple[int, tuple[int, ...], tuple[float, ...], tuple[bool, ...]]]:
    """Row, whole sequence, weights and main-document flags of its targets, of every sequence."""
    found = []
    for row, low, high in zip(batch.rows, batch.offsets[:-1], batch.offsets[1:], strict=True):
        ids, targets = batch.ids[low:high], batch.targets[low:high]
        assert np.array_equal(ids[1:], targets[:-1])
        whole, weights = (int(ids[0]), *targets.tolist()), tuple(batch.weights[low:high].tolist())
        found.append((int(row), whole, weights, tuple(batch.main[low:high].tolist())))
    return found


def test_a_batch_is_whole_sequences_end_to_end() -> None:
    batch = batches(replace(RUN, alpha=1.0)).batch(3)
    assert batch.offsets[0] == 0
    assert batch.offsets[-1] == len(batch.ids) == len(batch.targets) == len(batch.weights) == len(batch.main)
    assert V.pad not in batch.ids
    for row, ids, weights, main in sequences(batch):
        original, _ = unmask(np.array(ids), V)
        start = np.flatnonzero(original == V.doc)[-1]
        assert int(original[start + 2]) - V.text_start == row
        assert main == tuple(place >= start for place in range(1, len(ids)))
        assert weights == tuple(float(not V.is_mask(id)) for id in ids[1:])
    assert batch.normaliser == pytest.approx(batch.weights.sum())


def test_steps_have_the_tokens_they_should_on_average() -> None:
    sampler = batches(replace(RUN, tokens_per_step=1000, masking=MaskingConfig(0, 0, 0)))
    tokens = np.mean([len(sampler.batch(step).ids) for step in range(50)])
    assert tokens == pytest.approx(1000, rel=0.15)  # marks and sentinels come on top, a sequence's last token is none


@given(st.integers(0, 50), st.integers(1, 5))
def test_parts_are_the_step(step: int, parts: int) -> None:
    sampler = batches(replace(RUN, tokens_per_step=400))
    whole = sampler.batch(step)
    dealt = [sampler.batch(step, part, parts) for part in range(parts)]
    assert sorted(one for part in dealt for one in sequences(part)) == sorted(sequences(whole))
    assert {part.normaliser for part in dealt} == {whole.normaliser}
    lengths = [len(part.ids) for part in dealt]
    assert max(lengths) - min(lengths) <= np.diff(whole.offsets).max()


def test_more_parts_than_sequences() -> None:
    with pytest.raises(ConfigError, match="too few for 100 processes"):
        batches().batch(0, 0, 100)


@given(st.integers(0, ROWS - 1), st.integers(0, 2), st.integers(0, 2**32 - 1), st.sampled_from([0, 1]))
def test_a_sequence_is_its_retrieved_documents_and_the_masked_main_one(row: int, k: int, seed: int, least: int) -> None:
    run = replace(RUN, masking=MaskingConfig(minimum=least))  # type: ignore[arg-type]
    data = dataset()
    ids, weights = Batches(data, MARKUP, GRID, run).sequence(row, k, np.random.default_rng(seed))
    original, spans = unmask(ids, V)
    found = documents(original)
    names = [int(document[2]) - V.text_start for document in found]
    assert names[-1] == row
    assert len(names) == k + 1
    assert row not in names[:-1]
    for name, document in zip(names, found, strict=True):
        assert np.array_equal(document, data.ids[name])
    before = sum(len(document) for document in found[:-1])
    assert all(before < start < end < len(original) for start, end in spans)  # never in a retrieved document
    assert len(spans) >= least
    assert weights[:before].tolist() == [np.float32(RUN.alpha)] * before
    assert weights[before:].tolist() == [0.0 if V.is_mask(int(id)) else 1.0 for id in ids[before:]]


def test_the_query_is_the_text_in_its_share_of_sequences() -> None:
    found = Counter()
    for seed in range(500):
        run = replace(RUN, text_query_share=0.8)
        ids, _ = Batches(dataset(), MARKUP, GRID, run).sequence(0, 1, np.random.default_rng(seed))
        found[int(ids[2]) - V.text_start] += 1
    assert set(found) == {1, 2}  # the text's best neighbour, and the picture's
    assert found[1] / 500 == pytest.approx(0.8, abs=0.06)


@given(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=2, max_size=3), st.integers(0, 2**32 - 1))
def test_renamed_codes_are_those_shared_and_equal_codes_stay_equal(codes: list[list[int]], seed: int) -> None:
    documents = [np.array(MARKUP.to_ids((TextIds((1,)), ImageCodes(tuple(c)))), np.int32) for c in codes]
    shared = set(codes[-1]) & {code for other in codes[:-1] for code in other}
    renamed = batches().renamed(documents, np.random.default_rng(seed))
    new_name: dict[int, int] = {}
    for before, after in zip(documents, renamed, strict=True):
        for old, new in zip(before.tolist(), after.tolist(), strict=True):
            assert new_name.setdefault(old, new) == new
            assert old == new or old - V.image_start in shared
    assert len({new_name[V.image_start + code] for code in shared}) == len(shared)


def test_rare_words_are_renamed_and_common_ones_kept() -> None:
    names, common = range(1, 41), 45
    documents = [
        np.array(MARKUP.to_ids((TextIds((common, name)), ImageCodes((0, 1, 2, 3)))), np.int32) for name in names
    ]
    source = Batches(TrainingSet(documents, None), MARKUP, GRID, replace(RUN, retrieved_shares=(1.0,)))
    main = documents[0]
    renamed = [source.renamed([main, main], np.random.default_rng(seed)) for seed in range(20)]
    words = np.array([new[2:4] - V.text_start for _, new in renamed])  # (20, 2)
    assert (words[:, 0] == common).all()
    assert len(set(words[:, 1].tolist())) > 10
    assert all((one == other).all() and V.is_text(one[2:4]).all() for one, other in renamed)


def test_what_is_renamed_is_not_to_be_predicted_before_the_main_document() -> None:
    run = replace(RUN, rename_share=1.0)
    ids, weights = Batches(dataset(), MARKUP, GRID, run).sequence(0, 2, np.random.default_rng(0))
    main_start = np.flatnonzero(ids == V.doc)[-1]
    assert not weights[:main_start].any()
    assert weights[main_start:].any()


def parts(ids: np.ndarray) -> tuple[list[int], list[int]]:
    """The text ids and the image codes of a document."""
    return ids[V.is_text(ids)].tolist(), (ids[V.is_image(ids)] - V.image_start).tolist()


def test_documents_with_few_neighbours_have_shorter_prompts() -> None:
    data = dataset(count=2)
    alone = TrainingSet(data.ids, np.array([[[1, -1], [1, -1]], [[-1, -1], [-1, -1]]]))
    for row, expected in ((0, 2), (1, 1)):
        ids, _ = Batches(alone, MARKUP, GRID, RUN).sequence(row, 2, np.random.default_rng(0))
        assert (ids == V.doc).sum() == expected


@pytest.mark.parametrize("shares", [(1 / 3, 1 / 3, 1 / 3), (1, 0, 3), (1,)])
def test_the_number_of_retrieved_documents_is_drawn_by_sequences(shares: tuple[float, ...]) -> None:
    sampler = batches(replace(RUN, retrieved_shares=shares, tokens_per_step=1200))
    found = np.zeros(len(shares))
    for step in range(100):
        counts = [Counter(ids)[V.doc] - 1 for _, ids, _, _ in sequences(sampler.batch(step))]
        of_step = np.bincount(counts, minlength=len(shares))
        assert (np.abs(of_step - len(counts) * np.array(shares) / sum(shares)) < 1).all()
        found += of_step
    assert found / found.sum() == pytest.approx(np.array(shares) / sum(shares), abs=0.01)


# Masks


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (2, 2), (3, 2), (4, 4), (8, 8), (24, 24), (70, 3)])
def test_regions_fit_every_grid(grid: tuple[int, int]) -> None:
    run = replace(RUN, masking=MaskingConfig(whole_text_share=0, region_share=1))
    data = dataset(count=1, grid=grid)
    sampler = Batches(data, Markup(V, grid[0] * grid[1]), grid, run)
    start = int(np.flatnonzero(data.ids[0] == V.image)[0]) + 1
    for seed in range(30):
        main, spans = sampler.hidden(data.ids[0], [], np.random.default_rng(seed))
        assert main is data.ids[0]
        places = [divmod(position - start, grid[1]) for low, high in spans for position in range(low, high)]
        rows, columns = {row for row, _ in places}, {column for _, column in places}
        assert 1 <= len(spans) == len(rows) <= MAX_MASKS
        assert len(places) == len(rows) * len(columns)
        assert max(rows) < grid[0]
        assert len(rows) < grid[0] or grid[0] == 1


def test_a_side_is_a_quarter_to_three_quarters() -> None:
    rng = np.random.default_rng(0)
    assert {draw_side(rng, 8, MAX_MASKS) for _ in range(200)} == {3, 4, 5, 6}
    assert {draw_side(rng, 4, MAX_MASKS) for _ in range(200)} == {2, 3}
    assert {draw_side(rng, 24, MAX_MASKS) for _ in range(400)} == set(range(7, 17))


def test_a_whole_text_is_masked_as_captioning_asks() -> None:
    sampler = batches(replace(RUN, masking=MaskingConfig(whole_text_share=1, region_share=0)))
    main = sampler.data.ids[2]
    assert sampler.hidden(main, [], np.random.default_rng(0)) == (main, part_spans(main, V, "text"))


def test_a_region_may_stand_without_its_words() -> None:
    sampler = batches(replace(RUN, masking=MaskingConfig(whole_text_share=0, region_share=1, wordless_share=1)))
    main, spans = sampler.hidden(sampler.data.ids[2], [], np.random.default_rng(0))
    assert parts(main) == ([], parts(sampler.data.ids[2])[1])
    assert main.tolist()[:2] == [V.doc, V.image]
    assert all(V.is_image(main[start:end]).all() for start, end in spans)


def test_a_share_of_the_regions_lies_around_what_was_retrieved() -> None:
    rng, side = np.random.default_rng(0), 4
    v = Vocabulary(TEXT.size, 1000)
    common, own = [0] * 16, [0] * 16
    own[5], own[10] = 7, 8  # row 1, column 1 and row 2, column 2
    documents = [
        np.array(Markup(v, 16).to_ids((TextIds((row,)), ImageCodes(tuple(codes)))), np.int32)
        for row, codes in enumerate([own, *[common] * 40])
    ]
    run = replace(RUN, retrieved_shares=(1.0,), masking=MaskingConfig(around_share=0.5))
    sampler = Batches(TrainingSet(documents, None), Markup(v, 16), (side, side), run)
    codes = documents[0][np.flatnonzero(documents[0] == v.image)[0] + 1 :]
    found = Counter(sampler.rectangle(codes, [documents[0]], rng) for _ in range(400))
    assert found[1, 1, 2, 2] / 400 == pytest.approx(0.5 + 0.5 * 0.25 / 9, abs=0.1)
    unrelated = Counter(sampler.rectangle(codes, [documents[1]], rng) for _ in range(400))
    assert unrelated[1, 1, 2, 2] / 400 < 0.2  # the common code says nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskingConfig(minimum=2), "minimum is 0 or 1"),  # type: ignore[arg-type]
        (lambda: MaskingConfig(wordless_share=1.1), "wordless_share are between 0 and 1"),
        (lambda: MaskingConfig(whole_text_share=0.6, region_share=0.6), "sum to at most 1"),
        (lambda: replace(RUN, alpha=-1), "alpha >= 0"),
        (lambda: replace(RUN, rename_share=1.5), "rename_share is between 0 and 1"),
        (lambda: replace(RUN, retrieved_shares=()), "retrieved_shares >= 0"),
        (lambda: replace(RUN, retrieved_shares=(0, 0)), "not all 0"),
        (lambda: replace(RUN, text_query_share=1.5), "text_query_share is between 0 and 1"),
    ],
)
def test_settings_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_retrieval_needs_neighbours() -> None:
    with pytest.raises(SourceError, match="prepared without an encoder"):
        batches(neighbours=False)
    Batches(dataset(neighbours=False), MARKUP, GRID, replace(RUN, retrieved_shares=(1,)))


# Training


def test_parts_have_the_gradient_of_the_step() -> None:
    torch.manual_seed(0)
    run = replace(RUN, tokens_per_step=400)
    sampler = batches(run)
    generator = Generator(GeneratorConfig(vocabulary_size=V.size, **asdict(run.model)))

    def summed(parts: int) -> tuple[float, Tensor]:
        generator.zero_grad()
        losses = [packed_loss(generator, sampler.batch(0, part, parts), V, 1e-3)[0] for part in range(parts)]
        sum(losses).backward()  # type: ignore[union-attr]
        return sum(losses).item(), torch.cat([p.grad.flatten() for p in generator.parameters()])  # type: ignore

    loss, gradient = summed(1)
    for parts in (2, 3):
        same_loss, same_gradient = summed(parts)
        assert same_loss == pytest.approx(loss, rel=1e-5)
        assert torch.allclose(same_gradient, gradient, atol=1e-6)


@pytest.mark.parametrize("row_tokens", [3, 64, 500])  # 500: more padding than the context has tokens
def test_padding_of_the_row_changes_nothing(row_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(vocabulary_size=V.size, **asdict(SHAPE)))
    batch = batches().batch(0)
    rows_read = []
    generator.model.embed_tokens.register_forward_hook(lambda _, given, __: rows_read.append(given[0].shape[1]))

    def measured(multiple: int) -> dict[str, Tensor]:
        monkeypatch.setattr(module, "ROW_TOKENS", multiple)
        generator.zero_grad()
        loss, metrics = packed_loss(generator, batch, V, 1e-3)
        loss.backward()
        numbers = {name: torch.tensor(pair) for name, pair in metrics.items()}
        gradients = {name: value.grad for name, value in generator.named_parameters() if value.grad is not None}
        return {"loss": loss.detach()} | numbers | gradients

    plain, padded = measured(1), measured(row_tokens)
    assert rows_read == [len(batch.ids), -(-len(batch.ids) // row_tokens) * row_tokens]
    assert len(batch.ids) % row_tokens
    assert plain.keys() == padded.keys()
    for name, value in plain.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-5, atol=1e-7, msg=name)


def test_losses_of_the_kinds_of_targets_make_up_the_loss() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(vocabulary_size=V.size, **asdict(SHAPE)))
    batch = batches(replace(RUN, alpha=1.0)).batch(0)  # where a weight does not tell main from retrieved
    _, metrics = packed_loss(generator, batch, V, 0.0)
    with torch.no_grad():
        logits = generator.logits(generator(torch.from_numpy(batch.ids)[None], offsets=torch.from_numpy(batch.offsets)))
    nll = torch.nn.functional.cross_entropy(logits[0], torch.from_numpy(batch.targets), reduction="none").numpy()
    image, text = V.is_image(batch.targets), V.is_text(batch.targets)
    learnt = batch.weights > 0
    means = {name: float(total / count) for name, (total, count) in metrics.items()}
    assert means["retrieved"] == pytest.approx(nll[~batch.main & learnt].mean(), rel=1e-4)
    assert means["main_image"] == pytest.approx(nll[batch.main & image].mean(), rel=1e-4)
    assert means["main_text"] == pytest.approx(nll[batch.main & text].mean(), rel=1e-4)


def test_without_a_compiler_training_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    train_generator(dataset(), TEXT, MARKUP, GRID, replace(RUN, compile=True), tmp_path / "run")
    assert "no compiler (g++" in capsys.readouterr().err


def rows_of(folder: Path) -> list[dict[str, float]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_the_loss_falls_on_what_can_be_learnt_by_heart(tmp_path: Path) -> None:
    run = replace(
        RUN,
        model=replace(SHAPE, width=32, head_dim=16, mlp_width=64),
        optimiser=OptimiserConfig(lr=1e-2, muon_lr=2e-2, warmup_steps=5),
        loop=replace(RUN.loop, steps=120),
        retrieved_shares=(1,),
        masking=MaskingConfig(whole_text_share=0, region_share=0),
        tokens_per_step=400,
    )
    train_generator(dataset(count=3), TEXT, MARKUP, GRID, run, tmp_path)
    logged = rows_of(tmp_path)
    assert logged[0]["main_image"] > 4
    assert np.mean([row["main_image"] for row in logged[-5:]]) < 1  # 5 codes at random: 1.6
    assert all("retrieved" not in row for row in logged)  # there are none, so there is no number


def test_a_generator_folder_is_written(tmp_path: Path) -> None:
    generator = train_generator(dataset(), TEXT, MARKUP, GRID, RUN, tmp_path)
    opened = Generator.from_pretrained(tmp_path)
    for name, value in generator.state_dict().items():
        assert torch.equal(value.half().float(), opened.state_dict()[name])
    assert TextTokenizer.load(tmp_path / "tokenizer.json").encode("a fox") == TEXT.encode("a fox")
    facts = json.loads((tmp_path / "racm3.json").read_text(encoding="utf-8"))
    assert (facts["text_size"], facts["image_size"], facts["codes_per_image"]) == (V.text_size, 5, 4)
    assert facts["grid"] == [2, 2]
    assert facts["run"]["alpha"] == RUN.alpha
    rows_of(tmp_path)


def test_a_look_draws_and_measures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = FSQConfig(image_size_px=16, levels=(5,), encoder_width=8, decoder_width=16, decoder_layers=1)
    image = FSQImageTokenizer(config).eval()
    run = replace(RUN, loop=replace(RUN.loop, steps=40, look_every=20), validation_documents=2)
    train_generator(dataset(), TEXT, MARKUP, GRID, run, tmp_path / "seen", image=image)
    assert [row["step"] for row in rows_of(tmp_path / "seen") if "validation" in row] == [20, 40]
    sheets = sorted((tmp_path / "seen" / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-000000020.png", "step-000000040.png"]
    pictures = [np.asarray(PIL.Image.open(sheet)) for sheet in sheets]
    data = dataset().holding_out(2, RUN.loop.seed)
    rows = [*sorted(data.held_out), 0, 1, 2, 3][:4]
    above = image.decode(torch.tensor([MARKUP.from_ids(data.ids[row])[1].codes for row in rows]))  # type: ignore[union-attr]
    first, second = GAP_PX, 16 + 2 * GAP_PX
    for picture in pictures:  # the data above, what was drawn below
        for place, shown in enumerate(above):
            tile = picture[first : first + 16, GAP_PX + place * (16 + GAP_PX) :][:, :16]
            assert np.allclose(tile, 255 * shown.permute(1, 2, 0), atol=1)
    assert not np.array_equal(pictures[0][second:], pictures[1][second:])
    blind = replace(run, loop=replace(run.loop, look_every=0))
    with pytest.raises(ConfigError, match="validation_documents=2 are looked at every loop.look_every steps"):
        train_generator(dataset(), TEXT, MARKUP, GRID, blind, tmp_path / "blind")


def test_documents_held_out_are_never_met() -> None:
    sampler = Batches(dataset().holding_out(2, 0), MARKUP, GRID, RUN)
    held = sampler.data.held_out
    validation = sampler.validation()
    assert set(validation.rows.tolist()) == held
    assert not validation.weights[~validation.main].any()
    for step in range(20):
        for row, ids, _, _ in sequences(sampler.batch(step)):
            original, _ = unmask(np.array(ids), V)
            named = {int(original[start + 2]) - V.text_start for start in np.flatnonzero(original == V.doc)}
            assert row not in held
            assert not named & held
    with pytest.raises(SourceError, match="are to be held out"):
        dataset().holding_out(ROWS, 0)


def test_similar_codes_start_with_similar_embeddings(tmp_path: Path) -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    run = replace(RUN, optimiser=replace(RUN.optimiser, lr=1e-9, muon_lr=1e-9), loop=replace(RUN.loop, steps=1))
    generator = train_generator(dataset(), TEXT, MARKUP, GRID, run, tmp_path, code_vectors=vectors)
    table = torch.nn.functional.normalize(generator.model.embed_tokens.weight[V.image_start :].detach(), dim=1)
    assert table[0] @ table[1] > table[0] @ table[3] > table[0] @ table[2]


def test_what_compiling_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(module.shutil, "which", lambda name: f"/bin/{name}" if name == "clang" else None)
    assert not can_compile(torch.device("cuda"))  # no headers
    (tmp_path / "Python.h").touch()
    assert can_compile(torch.device("cuda"))
    assert not can_compile(torch.device("cpu"))
    monkeypatch.setenv("CXX", "clang")
    assert can_compile(torch.device("cpu"))
