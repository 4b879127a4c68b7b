"""The engine against a slow twin that reads the whole sequence again for every token, one request at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from racm3.errors import CacheLimitError, ConfigError, InputError, MarkupError, PromptTooLongError
from racm3.generator import batch as batch_module
from racm3.generator import prefill as prefill_module
from racm3.generator.constraints import Chain, Fixed, ImageSpan, TextSpan
from racm3.generator.engine import Context, Engine, SequenceOutput, SequenceRequest
from racm3.generator.kv_cache import Cache
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.model_runner import ModelRunner
from racm3.generator.sampling import Sampling
from racm3.tokens.vocabulary import Vocabulary

V = Vocabulary(text_size=20, image_size=12)
CODES_PER_IMAGE = 9
GREEDY = Sampling(temperature=0)
GUIDED = Sampling(temperature=0.9, top_k=8, top_p=0.9, guidance=2.5)


@pytest.fixture(scope="module", params=[1, 4], ids=["grouped", "ungrouped"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """A generator with an opinion: at its start, all tokens are equally likely and nothing shows."""
    torch.manual_seed(0)
    config = GeneratorConfig(V.size, 32, 2, 4, request.param, 8, 64, context_tokens=64)
    generator = Generator(config)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.3)
    return Engine(generator, V)


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(V.text_start, V.size, length).tolist()


def text(max_tokens: int = 12) -> TextSpan:
    return TextSpan(V, [V.end, V.eos], max_tokens)


def image() -> ImageSpan:
    return ImageSpan(V, CODES_PER_IMAGE)


def mixed_requests() -> list[SequenceRequest]:
    """Texts and images, greedy and drawn, with guidance and without, prompts of different lengths."""
    return [
        SequenceRequest(prompt(3, 0), text(), GREEDY),
        SequenceRequest(prompt(20, 1), image(), GREEDY),
        SequenceRequest(prompt(11, 2), image(), replace(GREEDY, guidance=3.0), unconditional=prompt(4, 3)),
        SequenceRequest(prompt(5, 4), text(), Sampling(), seed=5),
        SequenceRequest(prompt(2, 5), image(), GUIDED, seed=6, unconditional=prompt(17, 6)),
        SequenceRequest(prompt(9, 7), text(3), Sampling(temperature=2.0, top_k=5), seed=7),
        SequenceRequest(
            prompt(5, 4), Chain(ImageSpan(V, 2), Fixed(V, [V.infill(1)]), text(4)), Sampling(top_p=0.7), seed=8
        ),
    ]


@torch.no_grad()
def slow(engine: Engine, request: SequenceRequest) -> SequenceOutput:
    """One request, no cache, no batch, filters written out token by token."""

    def logits_after(prompts: list[Sequence[int]]) -> Tensor:  # (V,)
        """Of one prompt; of several, the logarithm of their mean probability."""
        logits = [engine.generator.logits(engine.generator(torch.tensor([[*p, *drawn]])))[0, -1] for p in prompts]
        if len(logits) == 1:
            return logits[0]
        allowed = torch.full((V.size,), -math.inf).index_fill(0, torch.tensor(may), 0.0)
        return torch.stack([(one + allowed).softmax(-1) for one in logits]).mean(0).log()

    constraint, sampling = copy.deepcopy(request.constraint), request.sampling
    numbers = torch.rand(
        constraint.max_steps, generator=torch.Generator().manual_seed(request.seed), dtype=torch.float64
    ).tolist()
    drawn: list[int] = []
    spans: list[list[int]] = [[]]
    total = 0.0
    while not constraint.done:
        may = constraint.allowed().nonzero()[0].tolist()
        own = logits_after([context.prompt for context in request.contexts])
        scores = own
        if sampling.context_aware != 1 and request.without_context is not None:
            without = logits_after([request.without_context])
            scores = without + sampling.context_aware * (scores - without)
        if sampling.guidance != 1:
            other = logits_after([context.unconditional or () for context in request.contexts])
            scores = other + sampling.guidance * (scores - other)
        ranked = sorted(may, key=lambda id: -float(scores[id]))
        if sampling.temperature == 0:
            id = ranked[0]
        else:
            ranked = ranked[: sampling.top_k]
            weights = (scores[ranked].double() / sampling.temperature).softmax(-1).tolist()
            probability: dict[int, float] = {}
            for candidate, weight in zip(ranked, weights, strict=True):
                if sum(probability.values()) < sampling.top_p:
                    probability[candidate] = weight
            u = numbers[len(drawn)] * sum(probability.values())
            for id in sorted(probability):
                u -= probability[id]
                if u < 0:
                    break
        total += float(own[id] - own[may].logsumexp(-1))
        drawn.append(id)
        if constraint.push(id):
            spans[-1].append(id)
        else:
            spans.append([])
    return SequenceOutput(tuple(tuple(span) for span in spans if span), total, len(drawn))


def assert_same(ours: list[SequenceOutput], expected: list[SequenceOutput]) -> None:
    assert [one.spans for one in ours] == [one.spans for one in expected]
    assert [one.steps for one in ours] == [one.steps for one in expected]
    assert [one.log_probability for one in ours] == pytest.approx([one.log_probability for one in expected], abs=1e-4)


def test_one_batch_equals_the_slow_twin(engine: Engine) -> None:
    requests = mixed_requests()
    assert_same(engine.run(requests), [slow(engine, request) for request in requests])


def ensembles() -> list[SequenceRequest]:
    """Of two and three contexts, guided and not."""
    return [
        SequenceRequest(prompt(5, 30), image(), Sampling(temperature=2.0), seed=1, others=[Context(prompt(9, 31))]),
        SequenceRequest(
            prompt(12, 32),
            text(),
            replace(GUIDED, temperature=2.0),
            seed=2,
            unconditional=prompt(4, 33),
            others=[Context(prompt(6, 34), prompt(3, 35)), Context(prompt(7, 36), prompt(3, 35))],
        ),
    ]


def test_ensembles_average_probabilities_at_every_step(engine: Engine) -> None:
    requests = [*ensembles(), *mixed_requests()]
    assert_same(engine.run(requests), [slow(engine, request) for request in requests])


def test_an_ensemble_of_one_prompt_twice_is_that_prompt(engine: Engine) -> None:
    request = SequenceRequest(prompt(5, 0), image(), Sampling(), seed=3)
    assert_same(engine.run([replace(request, others=[Context(request.prompt)])]), engine.run([request]))


def test_a_job_does_not_see_its_batch_mates(engine: Engine) -> None:
    """Not by a bit."""
    requests = [*mixed_requests(), *ensembles()]
    together = engine.run(requests)
    assert [engine.run([request])[0] for request in requests] == together
    assert engine.run(requests[::-1])[::-1] == together
    for max_rows in (6, 8):  # they wait for each other
        assert Engine(engine.generator, V, max_rows=max_rows).run(requests) == together


def test_jobs_join_and_leave_at_every_step(engine: Engine) -> None:
    requests = [*mixed_requests(), *ensembles()]
    alone = [engine.run([request])[0] for request in requests]
    sequences, reached = [], []
    for request in requests:
        sequences.append(engine.submit(request))
        events = engine.step()
        reached.append([sequence.steps for sequence in sequences])
        assert {event.request for event in events} <= {sequence.number for sequence in sequences}
    first, second, third = (steps[1] for steps in reached[1:4])
    assert first == 1 < second < third
    while engine.step():
        pass
    assert [sequence.output for sequence in sequences] == alone
    assert all(sequence.done for sequence in sequences)


def test_a_cancelled_job_leaves_and_the_others_go_on(engine: Engine) -> None:
    requests = [SequenceRequest(prompt(4, i), image(), Sampling(), seed=i) for i in range(3)]
    expected = engine.run(requests)
    first, second, waiting = (engine.submit(request) for request in requests)
    engine.step()
    first.cancel()
    waiting.cancel()
    while events := engine.step():
        assert {event.request for event in events} == {second.number}
    assert second.output == expected[1]
    assert first.done
    assert first.output.tokens == expected[0].tokens[:1]
    assert engine.run(requests) == expected


def test_a_stream_is_the_output_token_by_token(engine: Engine) -> None:
    requests = [*mixed_requests(), *ensembles()]
    spans: list[dict[int, list[int]]] = [{} for _ in requests]
    done = []
    for event in engine.stream(requests):
        assert event.request not in done
        if event.id is not None:
            spans[event.request].setdefault(event.span, []).append(event.id)
        if event.done:
            done.append(event.request)
    assert sorted(done) == list(range(len(requests)))
    expected = engine.run(requests)
    assert [tuple(tuple(one[span]) for span in sorted(one)) for one in spans] == [one.spans for one in expected]
    assert all(sorted(one) == list(range(len(one))) for one in spans)


def test_closing_a_stream_cancels_its_jobs(engine: Engine) -> None:
    stream = engine.stream([SequenceRequest(prompt(4, 0), image())])
    next(stream)
    stream.close()
    assert engine.step() == []


def test_the_same_job_again_gives_the_same(engine: Engine) -> None:
    """Constraints have a state; a request must not be used up by its run."""
    requests = mixed_requests()
    assert engine.run(requests) == engine.run(requests)


@pytest.fixture
def passes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every pass of a runner from now on, how many tokens and caches it read; without drafts, one token a row."""
    monkeypatch.setattr(engine, "drafts", False)
    seen: list[tuple[int, int]] = []
    read = ModelRunner.forward

    def noting(self: ModelRunner, ids: Tensor, caches: Sequence[Cache]) -> Tensor:
        seen.append((len(ids), len(caches)))
        return read(self, ids, caches)

    monkeypatch.setattr(ModelRunner, "forward", noting)
    return seen


@pytest.mark.parametrize("kept_once", [False, True])
def test_what_prompts_have_in_common_is_read_once(
    engine: Engine, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, kept_once: bool
) -> None:
    """Six guided samples: documents of 20 tokens, behind which the prompt has 5 more and the unconditional one 2."""
    monkeypatch.setattr(batch_module, "SHARED_TOKENS", 0 if kept_once else 10**6)
    documents = prompt(20, 0)
    request = SequenceRequest(
        [*documents, *prompt(5, 1)],
        image(),
        replace(GUIDED, temperature=3.0, top_p=1.0),
        unconditional=[*documents, *prompt(2, 2)],
    )
    requests = [replace(request, seed=seed) for seed in range(6)]
    requests.append(SequenceRequest(prompt(3, 3), image(), GREEDY))
    outputs = engine.run(requests)
    groups = 2 if kept_once else 1
    assert passes == [(23, 2), (7, 2)] + [(13, groups)] * (CODES_PER_IMAGE - 1)
    assert len({one.tokens for one in outputs}) > 2
    assert_same(outputs, [slow(engine, request) for request in requests])


def test_retrieved_documents_stay_read_for_later_jobs(engine: Engine, passes: list[tuple[int, int]]) -> None:
    documents = [V.doc, *prompt(9, 0), V.end, V.doc, *prompt(9, 1), V.end]
    requests = [SequenceRequest([*documents, V.doc, *prompt(count, 2)], ImageSpan(V, 1), GREEDY) for count in (1, 3, 5)]
    expected = [slow(engine, request) for request in requests]
    fresh = Engine(engine.generator, V)
    assert_same([fresh.run([request])[0] for request in requests], expected)
    assert [tokens for tokens, _ in passes] == [22, 2, 4, 6]
    assert (
        [fresh.run([request])[0] for request in requests]
        == fresh.run(requests)
        == [Engine(engine.generator, V).run([j])[0] for j in requests]
    )

    passes.clear()
    kept = fresh._prefixes.nbytes
    one_only = Engine(engine.generator, V, prefix_bytes=kept)
    other = SequenceRequest([V.doc, *prompt(20, 3), V.end, V.doc, V.image], ImageSpan(V, 1), GREEDY)  # as many tokens
    for request in (requests[0], other, requests[0]):
        one_only.run([request])
    assert [tokens for tokens, _ in passes] == [22, 2, 22, 2, 22, 2]
    assert one_only._prefixes.nbytes == kept
    passes.clear()
    Engine(engine.generator, V, prefix_bytes=0).run([requests[0]] * 2)
    assert [tokens for tokens, _ in passes] == [22, 2]


def test_rows_of_finished_jobs_drop_out(engine: Engine, passes: list[tuple[int, int]]) -> None:
    engine.run([SequenceRequest(prompt(4, 0), ImageSpan(V, count)) for count in (2, 5, 1)])
    assert [tokens for tokens, _ in passes] == [4, 2, 1, 1, 1]  # the prompt; then two requests are left, then one


def test_long_prompts_are_read_in_pieces(
    engine: Engine, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill_module, "PREFILL_TOKENS", 16)
    requests = [SequenceRequest(prompt(20, 1), ImageSpan(V, 1)), SequenceRequest(prompt(11, 2), ImageSpan(V, 1))]
    outputs = engine.run(requests)
    assert [tokens for tokens, _ in passes] == [16, 15]
    assert_same(outputs, [slow(engine, request) for request in requests])


def test_changed_weights_are_noticed(engine: Engine) -> None:
    request = SequenceRequest(prompt(4, 0), image())
    before = engine.run([request])
    with torch.no_grad():
        engine.generator.lm_head.weight.neg_()
    assert engine.run([request]) != before
    assert_same(engine.run([request]), [slow(engine, request)])


def test_memory_is_checked_before_the_start(engine: Engine) -> None:
    request = SequenceRequest(prompt(4, 0), image())
    needed = engine.estimated_bytes([request])
    config = engine.generator.config
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * 4
    assert needed == 4 * 64 * per_token  # the prompt, and its row, doubled and copied; 64 is the granule
    Engine(engine.generator, V, cache_bytes=needed).run([request])
    with pytest.raises(CacheLimitError, match=r"request 0 needs up to .* GB for keys and values; .* GB may be taken"):
        Engine(engine.generator, V, cache_bytes=needed - 1).run([request])
    requests = mixed_requests()
    assert Engine(engine.generator, V, cache_bytes=2 * needed).run(requests) == engine.run(
        requests
    )  # one after the other


@pytest.mark.parametrize("seed", range(5))
def test_answers_are_what_was_asked_for(engine: Engine, seed: int) -> None:
    hot = Sampling(temperature=5.0)
    rows = Chain(ImageSpan(V, 3), Fixed(V, [V.infill(1)]), ImageSpan(V, 4))
    picture, words, filled = engine.run(
        [
            SequenceRequest(prompt(4, seed), image(), hot, seed),
            SequenceRequest(prompt(7, seed), text(6), hot, seed),
            SequenceRequest(prompt(2, seed), rows, hot, seed),
        ]
    )
    assert len(picture.tokens) == CODES_PER_IMAGE
    assert all(V.is_image(id) for id in picture.tokens)
    assert 1 <= len(words.tokens) <= 6
    assert all(V.is_text(id) for id in words.tokens)
    assert words.steps == len(words.tokens) + 1  # and the stop token
    assert [len(span) for span in filled.spans] == [3, 4]
    assert filled.tokens == filled.spans[0] + filled.spans[1]
    assert all(V.is_image(id) for id in filled.tokens)


def test_guidance_of_one_needs_and_reads_no_other_prompt(engine: Engine) -> None:
    plain = SequenceRequest(prompt(5, 0), image(), Sampling(), seed=1)
    with_other = replace(plain, unconditional=prompt(9, 1), without_context=prompt(2, 2))
    assert len(with_other.streams) == 1
    assert engine.run([plain]) == engine.run([with_other])


def context_aware() -> list[SequenceRequest]:
    """Greedy and drawn, with guidance and without, of one context and of two; the last has nothing to go by."""
    some = SequenceRequest(prompt(20, 1), image(), replace(GREEDY, context_aware=3.0), without_context=prompt(4, 1))
    return [
        some,
        replace(some, constraint=text(), sampling=Sampling(context_aware=1.5, top_p=0.8), seed=2),
        replace(some, sampling=replace(GUIDED, context_aware=2.0), unconditional=prompt(7, 3), seed=3),
        replace(some, others=[Context(prompt(9, 5))]),
        replace(some, without_context=None),
    ]


def test_context_aware_requests_equal_the_slow_twin_beside_others(engine: Engine) -> None:
    requests = [*context_aware(), *mixed_requests()]
    assert_same(engine.run(requests), [slow(engine, request) for request in requests])
    assert [len(request.streams) for request in context_aware()] == [2, 2, 3, 3, 1]
    assert engine.run(context_aware()) == engine.run(requests)[:5]
    first, *_, last = engine.run(context_aware())
    assert first != last


@torch.no_grad()
def slow_score(engine: Engine, before: list[int], more: list[int]) -> list[float]:
    logits = engine.generator.logits(engine.generator(torch.tensor([before + more])))[0]
    return [float(logits[len(before) - 1 + i].log_softmax(-1)[id]) for i, id in enumerate(more)]


def test_scores_equal_one_forward_pass_each(engine: Engine) -> None:
    prompts = [prompt(length, length) for length in (3, 12, 7, 1)]
    continuations = [prompt(length, 50 + length) for length in (5, 1, 9, 2)]
    sizes = [{}, {"max_rows": 3}, {"cache_bytes": 1}]
    for size in sizes:
        scores = Engine(engine.generator, V, **size).score(prompts, continuations)
        for before, more, score in zip(prompts, continuations, scores, strict=True):
            assert score.tolist() == pytest.approx(slow_score(engine, before, more), abs=1e-4)


def test_a_prompt_is_read_once_for_all_its_continuations(engine: Engine, passes: list[tuple[int, int]]) -> None:
    """Two prompts of 20 tokens with four labels each, of which two differ in the last token alone."""
    prompts = [prompt(20, 0), prompt(20, 1)]
    first, second, third = prompt(3, 2), prompt(2, 3), prompt(4, 4)
    labels = [first, second, [*third, V.eos], [*third, V.end]]
    pairs = [(before, label) for before in prompts for label in labels]
    together = engine.score(*zip(*pairs, strict=True))
    assert passes == [(2 * 20, 2), (2 * (2 + 1 + 4), 6)]
    for pair, score in zip(pairs, together, strict=True):
        (alone,) = engine.score(*zip(pair, strict=True))
        assert score.tolist() == alone.tolist()
        assert score.tolist() == pytest.approx(slow_score(engine, *pair), abs=1e-4)


def test_the_log_probability_of_a_output_is_its_score(engine: Engine) -> None:
    """Where every id is allowed, the two ways to ask are one."""

    class Anything(ImageSpan):
        def allowed(self) -> np.ndarray:
            return np.ones(V.size, dtype=bool)

    request = SequenceRequest(prompt(6, 0), Anything(V, 7), GUIDED, seed=3, unconditional=prompt(3, 0))
    output = engine.run([request])[0]
    (score,) = engine.score([request.prompt], [output.tokens])
    assert output.log_probability == pytest.approx(float(score.sum()), abs=1e-4)


def test_progress(engine: Engine) -> None:
    calls: list[tuple[int, int]] = []
    requests = [
        SequenceRequest(prompt(3, 0), text(12), GREEDY),
        SequenceRequest(prompt(3, 1), image()),
        SequenceRequest(prompt(3, 2), text(2)),
    ]
    Engine(engine.generator, V, max_rows=2).run(requests, on_step=lambda done, total: calls.append((done, total)))
    assert {total for _, total in calls} == {13 + CODES_PER_IMAGE + 3}
    assert calls[-1][0] == calls[-1][1]
    assert all(a[0] < b[0] for a, b in pairwise(calls))


def test_no_requests(engine: Engine) -> None:
    assert engine.run([]) == []
    assert engine.score([], []) == []


def test_a_prompt_that_just_fits_and_one_that_does_not(engine: Engine) -> None:
    long = prompt(64 - CODES_PER_IMAGE, 0)
    short = SequenceRequest(prompt(3, 1), image(), GREEDY)
    fits = SequenceRequest(long, image(), GREEDY)
    assert_same(engine.run([short, fits]), [slow(engine, short), slow(engine, fits)])
    message = "request 1: 56 tokens and up to 9 new ones exceed the generator's context of 64"
    with pytest.raises(PromptTooLongError, match=message):
        engine.run([short, SequenceRequest([*long, V.image_start], image())])
    with pytest.raises(PromptTooLongError, match=message):
        engine.run([fits, replace(short, unconditional=[*long, V.image_start], sampling=GUIDED)])
    engine.score([long], [prompt(CODES_PER_IMAGE, 0)])
    with pytest.raises(PromptTooLongError, match="pair 0: 65 tokens"):
        engine.score([long], [prompt(CODES_PER_IMAGE + 1, 0)])


def test_bad_requests(engine: Engine) -> None:
    with pytest.raises(InputError, match="a prompt has at least one token"):
        SequenceRequest([], image())
    with pytest.raises(InputError, match="a prompt has at least one token"):
        SequenceRequest(prompt(3, 0), image(), without_context=[])
    with pytest.raises(ConfigError, match=r"guidance is 2.5, but the request has no unconditional prompt"):
        SequenceRequest(prompt(3, 0), image(), GUIDED)
    with pytest.raises(ConfigError, match="seed is -1"):
        SequenceRequest(prompt(3, 0), image(), seed=-1)
    with pytest.raises(InputError, match=f"request 0: id {V.size}, which is outside .*; allowed are 0 to {V.size - 1}"):
        engine.run([SequenceRequest([V.doc, V.size], image())])
    with pytest.raises(InputError, match="2 prompts and 1 continuations"):
        engine.score([[1], [2]], [[3]])
    with pytest.raises(InputError, match="pair 0: the prompt or the continuation is empty"):
        engine.score([[1]], [[]])
    with pytest.raises(ConfigError, match="the vocabulary has 71"):
        Engine(engine.generator, Vocabulary(text_size=21, image_size=12))
    with pytest.raises(ConfigError, match="request 0 has 6 streams; max_rows is 4, so give it fewer contexts"):
        Engine(engine.generator, V, max_rows=4).run([ensembles()[1]])
    with pytest.raises(ConfigError, match="guidance is 2.5, .* give one to every context"):
        SequenceRequest(prompt(3, 0), image(), GUIDED, unconditional=[1], others=[Context(prompt(3, 1))])
    with pytest.raises(ConfigError, match="max_rows is 1"):
        Engine(engine.generator, V, max_rows=1)


def test_a_constraint_that_allows_nothing(engine: Engine) -> None:
    class Nothing(ImageSpan):
        def allowed(self) -> np.ndarray:
            return np.zeros(V.size, dtype=bool)

    good = SequenceRequest(prompt(3, 1), image())
    expected = engine.run([good])
    mate = engine.submit(good)
    engine.step()
    with pytest.raises(MarkupError, match="allows no id at all"):
        engine.run([SequenceRequest(prompt(3, 0), Nothing(V, 2))])
    assert mate.done  # a step that fails cancels the batch, and the next one starts afresh
    assert engine.step() == []
    assert engine.run([good]) == expected


def test_log_probabilities_are_of_the_allowed_ids(engine: Engine) -> None:
    """A single allowed id is certain, whatever the generator thinks of it."""
    (output,) = engine.run([SequenceRequest(prompt(3, 0), Fixed(V, [V.end, V.eos]))])
    assert output == SequenceOutput((), 0.0, 2)
    assert math.copysign(1, output.log_probability) == 1
