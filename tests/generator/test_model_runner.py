"""The runner and its caches against the model, which reads the whole sequence at once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from racm3.errors import ConfigError
from racm3.generator import native as native_module
from racm3.generator.kv_cache import BatchCache, PromptCache
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.model_runner import ModelRunner

CONFIG = GeneratorConfig(61, 32, 2, 4, 2, 8, 64, context_tokens=256, norm_eps=1e-3)
BOUNDARY = 40
TOKENS = 150


def generator(config: GeneratorConfig = CONFIG) -> Generator:
    torch.manual_seed(0)
    generator = Generator(config)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return generator.eval()


def prompt_cache(runner: ModelRunner, ids: Tensor, after: PromptCache | None = None) -> tuple[PromptCache, Tensor]:
    """A cache of these ids behind another, and the logits of its tokens."""
    read = PromptCache(runner.config, 256, runner.cache_dtype, runner.device, after)
    read.pending = len(ids)
    return read, runner.logits(runner.forward(ids, [read]), ("text", "image"))


def has_compiler() -> bool:
    return any(shutil.which(name) for name in ("cc", "gcc", "clang"))


@pytest.fixture(params=["native", "operators"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether steps are those of ``step.c``, or as where there is no compiler."""
    if request.param == "operators":
        monkeypatch.setattr(native_module, "compiled", lambda weight_bytes: None)
    elif not has_compiler():
        pytest.skip("no C compiler")
    return request.param == "native"


@pytest.fixture(params=["small", "ungrouped", "untied"])
def pair(request: pytest.FixtureRequest, native: bool) -> tuple[Generator, ModelRunner]:
    changes = {"ungrouped": {"kv_heads": 4}, "untied": {"tie_embeddings": False}}
    model = generator(replace(CONFIG, **changes.get(request.param, {})))
    runner = ModelRunner(model, BOUNDARY)
    assert (runner.native is not None) == native
    return model, runner


@torch.inference_mode()
@pytest.mark.parametrize("shared", [False, True])
def test_passages_and_rows_equal_the_model(pair: tuple[Generator, ModelRunner], shared: bool) -> None:
    """140 tokens are read in two prompt_caches, then 10 one by one, in rows that join late, leave and move."""
    model, runner = pair
    sequences = torch.randint(61, (3, TOKENS))
    sequences[:, :100] = sequences[0, :100]
    expected = model.logits(model(sequences))
    first, logits = prompt_cache(runner, sequences[0, :100])
    assert torch.allclose(logits, expected[0, :100], atol=1e-4)
    rows = BatchCache(runner.config, runner.cache_dtype, runner.device, first if shared else None)
    order: list[int] = []
    reached = [140, 140, 140]

    def join(sequence: int) -> None:
        whole, logits = prompt_cache(runner, sequences[sequence, 100:140], first)
        assert torch.allclose(logits, expected[sequence, 100:140], atol=1e-4)
        rows.reserve(1, TOKENS)
        rows.add(whole)
        order.append(sequence)

    def step() -> None:
        ids = torch.stack([sequences[sequence, reached[sequence]] for sequence in order])
        logits = runner.logits(runner.forward(ids, [rows]), ("text", "image"))
        for row, sequence in enumerate(order):
            assert torch.allclose(logits[row], expected[sequence, reached[sequence]], atol=1e-4)
            reached[sequence] += 1

    join(0)
    step()
    join(1)
    join(2)
    step()
    order = [order[row] for row in rows.drop([0])]
    assert order == [2, 1]
    step()
    order = [order[row] for row in rows.drop([1])]
    step()


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_results_do_not_depend_on_the_batch(pair: tuple[Generator, ModelRunner], weights: str) -> None:
    """Bit by bit: read alone, beside others, after any cut, in a cache with more room."""
    model, runner = pair
    runner = ModelRunner(model, BOUNDARY, weights)
    torch.manual_seed(1)
    ids, other = torch.randint(61, (2, 101))

    def last(cut: int, others: int, spare: int) -> Tensor:
        beginning, _ = prompt_cache(runner, ids[:cut])
        whole, _ = prompt_cache(runner, ids[cut:100], beginning)
        rows = BatchCache(runner.config, runner.cache_dtype, runner.device)
        rows.reserve(others + 1, 101 + spare)
        for _ in range(others):
            rows.add(prompt_cache(runner, other[: 40 + others])[0])
        rows.add(whole)
        return runner.logits(runner.forward(torch.cat((other[:others], ids[100:])), [rows]), ("text", "image"))[-1]

    expected = last(50, 0, 0)
    for cut, others, spare in ((1, 0, 0), (64, 1, 0), (99, 2, 0), (30, 7, 100)):
        assert torch.equal(last(cut, others, spare), expected)


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shared", [False, True])
def test_tokens_of_one_pass_equal_tokens_one_by_one(native: bool, shared: bool, weights: str) -> None:
    """Bit by bit, of rows that read 1 to 11 tokens each, and again after some were taken back; where operators have a
    beginning in common, but for rounding."""
    runner = ModelRunner(generator(), BOUNDARY, weights)
    beginning, _ = prompt_cache(runner, torch.arange(50))
    ids = torch.randint(61, (3, 20))

    def rows() -> BatchCache:
        cache = BatchCache(runner.config, runner.cache_dtype, runner.device, beginning if shared else None)
        cache.reserve(3, 90)
        for row in range(3):
            cache.add(prompt_cache(runner, torch.arange(9 * row + 1), beginning)[0])
        return cache

    def read(cache: BatchCache, starts: list[int], counts: list[int], of: Tensor = ids) -> list[Tensor]:
        cache.counts = counts
        taken = [of[row, start : start + count] for row, (start, count) in enumerate(zip(starts, counts, strict=True))]
        return list(runner.forward(torch.cat(taken), [cache]).split(counts))

    one, many = rows(), rows()
    expected = torch.stack([torch.cat(read(one, [step] * 3, [1, 1, 1])) for step in range(20)], dim=1)  # (row, 20, D)
    read(many, [0, 0, 0], [5, 11, 4], torch.cat((ids[:, :4], 60 - ids[:, 4:]), dim=1))  # wrong from the fifth on
    many.take_back([1, 7, 0])
    for starts, counts in (([4, 4, 4], [1, 11, 2]), ([5, 15, 6], [10, 1, 3])):
        for row, piece in enumerate(read(many, starts, counts)):
            start, count = starts[row], counts[row]
            if native or not shared:
                assert torch.equal(piece, expected[row, start : start + count])
            else:
                assert torch.allclose(piece, expected[row, start : start + count], rtol=0.02, atol=0.02)
    with pytest.raises(RuntimeError, match="has room for"):
        read(many, [0, 0, 0], [1, 1, 128])


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_shared_passage_is_as_good_as_a_copy(weights: str) -> None:
    """Of native steps, bit by bit, and on any number of threads."""
    if not has_compiler():
        pytest.skip("no C compiler")
    runner = ModelRunner(generator(), BOUNDARY, weights)
    beginning, _ = prompt_cache(runner, torch.arange(50))
    found = []
    for shared, threads in ((None, 1), (beginning, 1), (beginning, 2)):
        rows = BatchCache(runner.config, runner.cache_dtype, runner.device, shared)
        rows.reserve(9, 61)
        for row in range(9):
            rows.add(prompt_cache(runner, torch.arange(row + 1), beginning)[0])
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(torch.stack([runner.forward(torch.arange(9) + step, [rows]) for step in range(2)]))
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@torch.inference_mode()
def test_parts_of_the_vocabulary(pair: tuple[Generator, ModelRunner]) -> None:
    _, runner = pair
    hidden_states = torch.randn(3, 32)
    both = runner.logits(hidden_states, ("text", "image"))
    assert torch.equal(runner.logits(hidden_states, ("text",)), both[:, :BOUNDARY])
    assert torch.equal(runner.logits(hidden_states, ("image",)), both[:, BOUNDARY:])


@torch.inference_mode()
@pytest.mark.parametrize(("weights", "error"), [("bfloat16", 0.03), ("int8", 0.06)])
def test_small_weights_cost_a_little(native: bool, weights: str, error: float) -> None:
    """The error of the logits, as a share of their spread."""
    model = generator()
    ids = torch.randint(61, (TOKENS,))
    expected = model.logits(model(ids[None]))[0]
    runner = ModelRunner(model, BOUNDARY, weights)
    read, logits = prompt_cache(runner, ids[:-1])
    rows = BatchCache(runner.config, runner.cache_dtype, runner.device)
    rows.reserve(1, TOKENS)
    rows.add(read)
    logits = torch.cat((logits, runner.logits(runner.forward(ids[-1:], [rows]), ("text", "image"))))
    assert 0 < float((logits - expected).std() / expected.std()) < error
    assert 0 < float((logits - expected)[-1].std() / expected.std()) < error


def test_unknown_weights() -> None:
    with pytest.raises(ConfigError, match="weights is 'int4'; it must be 'float32', 'bfloat16' or 'int8'"):
        ModelRunner(generator(), BOUNDARY, "int4")
