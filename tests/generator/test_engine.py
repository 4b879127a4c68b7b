"""The engine against a slow twin that reads the whole sequence again for every token, one job at a time."""

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
from racm3.generator import engine as engine_module
from racm3.generator.decoder import Reader
from racm3.generator.decoding import Chain, Fixed, ImageSpan, Sampling, TextSpan
from racm3.generator.engine import Completion, Context, Engine, Job
from racm3.generator.kv_cache import Cache
from racm3.generator.model import Generator, GeneratorConfig
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


def mixed_jobs() -> list[Job]:
    """Texts and images, greedy and drawn, with guidance and without, prompts of different lengths."""
    return [
        Job(prompt(3, 0), text(), GREEDY),
        Job(prompt(20, 1), image(), GREEDY),
        Job(prompt(11, 2), image(), replace(GREEDY, guidance=3.0), unconditional=prompt(4, 3)),
        Job(prompt(5, 4), text(), Sampling(), seed=5),
        Job(prompt(2, 5), image(), GUIDED, seed=6, unconditional=prompt(17, 6)),
        Job(prompt(9, 7), text(3), Sampling(temperature=2.0, top_k=5), seed=7),
        Job(prompt(5, 4), Chain(ImageSpan(V, 2), Fixed(V, [V.infill(1)]), text(4)), Sampling(top_p=0.7), seed=8),
    ]


@torch.no_grad()
def slow(engine: Engine, job: Job) -> Completion:
    """One job, no cache, no batch, filters written out token by token."""

    def logits_after(prompts: list[Sequence[int]]) -> Tensor:  # (V,)
        """Of one prompt; of several, the logarithm of their mean probability."""
        logits = [engine.generator.logits(engine.generator(torch.tensor([[*p, *drawn]])))[0, -1] for p in prompts]
        if len(logits) == 1:
            return logits[0]
        allowed = torch.full((V.size,), -math.inf).index_fill(0, torch.tensor(may), 0.0)
        return torch.stack([(one + allowed).softmax(-1) for one in logits]).mean(0).log()

    constraint, sampling = copy.deepcopy(job.constraint), job.sampling
    numbers = torch.rand(
        constraint.max_steps, generator=torch.Generator().manual_seed(job.seed), dtype=torch.float64
    ).tolist()
    drawn: list[int] = []
    spans: list[list[int]] = [[]]
    total = 0.0
    while not constraint.done:
        may = constraint.allowed().nonzero()[0].tolist()
        own = logits_after([context.prompt for context in job.contexts])
        scores = own
        if sampling.grounding != 1 and job.alone is not None:
            alone = logits_after([job.alone])
            scores = alone + sampling.grounding * (scores - alone)
        if sampling.guidance != 1:
            other = logits_after([context.unconditional or () for context in job.contexts])
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
    return Completion(tuple(tuple(span) for span in spans if span), total, len(drawn))


def assert_same(ours: list[Completion], expected: list[Completion]) -> None:
    assert [one.spans for one in ours] == [one.spans for one in expected]
    assert [one.steps for one in ours] == [one.steps for one in expected]
    assert [one.log_probability for one in ours] == pytest.approx([one.log_probability for one in expected], abs=1e-4)


def test_one_batch_equals_the_slow_twin(engine: Engine) -> None:
    jobs = mixed_jobs()
    assert_same(engine.run(jobs), [slow(engine, job) for job in jobs])


def ensembles() -> list[Job]:
    """Of two and three contexts, guided and not."""
    return [
        Job(prompt(5, 30), image(), Sampling(temperature=2.0), seed=1, others=[Context(prompt(9, 31))]),
        Job(
            prompt(12, 32),
            text(),
            replace(GUIDED, temperature=2.0),
            seed=2,
            unconditional=prompt(4, 33),
            others=[Context(prompt(6, 34), prompt(3, 35)), Context(prompt(7, 36), prompt(3, 35))],
        ),
    ]


def test_ensembles_average_probabilities_at_every_step(engine: Engine) -> None:
    jobs = [*ensembles(), *mixed_jobs()]
    assert_same(engine.run(jobs), [slow(engine, job) for job in jobs])


def test_an_ensemble_of_one_prompt_twice_is_that_prompt(engine: Engine) -> None:
    job = Job(prompt(5, 0), image(), Sampling(), seed=3)
    assert_same(engine.run([replace(job, others=[Context(job.prompt)])]), engine.run([job]))


def test_a_job_does_not_see_its_batch_mates(engine: Engine) -> None:
    """Not by a bit."""
    jobs = [*mixed_jobs(), *ensembles()]
    together = engine.run(jobs)
    assert [engine.run([job])[0] for job in jobs] == together
    assert engine.run(jobs[::-1])[::-1] == together
    for max_rows in (6, 8):  # they wait for each other
        assert Engine(engine.generator, V, max_rows=max_rows).run(jobs) == together


def test_jobs_join_and_leave_at_every_step(engine: Engine) -> None:
    jobs = [*mixed_jobs(), *ensembles()]
    alone = [engine.run([job])[0] for job in jobs]
    requests, reached = [], []
    for job in jobs:
        requests.append(engine.submit(job))
        events = engine.step()
        reached.append([request.steps for request in requests])
        assert {event.job for event in events} <= {request.number for request in requests}
    assert [steps[1] for steps in reached[1:4]] == [1, 2, 3]
    while engine.step():
        pass
    assert [request.completion for request in requests] == alone
    assert all(request.done for request in requests)


def test_a_cancelled_job_leaves_and_the_others_go_on(engine: Engine) -> None:
    jobs = [Job(prompt(4, i), image(), Sampling(), seed=i) for i in range(3)]
    expected = engine.run(jobs)
    first, second, waiting = (engine.submit(job) for job in jobs)
    engine.step()
    first.cancel()
    waiting.cancel()
    while events := engine.step():
        assert [event.job for event in events] == [second.number]
    assert second.completion == expected[1]
    assert first.done
    assert first.completion.tokens == expected[0].tokens[:1]
    assert engine.run(jobs) == expected


def test_a_stream_is_the_completion_token_by_token(engine: Engine) -> None:
    jobs = [*mixed_jobs(), *ensembles()]
    spans: list[dict[int, list[int]]] = [{} for _ in jobs]
    done = []
    for event in engine.stream(jobs):
        assert event.job not in done
        if event.id is not None:
            spans[event.job].setdefault(event.span, []).append(event.id)
        if event.done:
            done.append(event.job)
    assert sorted(done) == list(range(len(jobs)))
    expected = engine.run(jobs)
    assert [tuple(tuple(one[span]) for span in sorted(one)) for one in spans] == [one.spans for one in expected]
    assert all(sorted(one) == list(range(len(one))) for one in spans)


def test_closing_a_stream_cancels_its_jobs(engine: Engine) -> None:
    stream = engine.stream([Job(prompt(4, 0), image())])
    next(stream)
    stream.close()
    assert engine.step() == []


def test_the_same_job_again_gives_the_same(engine: Engine) -> None:
    """Constraints have a state; a job must not be used up by its run."""
    jobs = mixed_jobs()
    assert engine.run(jobs) == engine.run(jobs)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of every pass of a reader from now on, how many tokens and caches it read."""
    seen: list[tuple[int, int]] = []
    read = Reader.read

    def noting(self: Reader, ids: Tensor, caches: Sequence[Cache]) -> Tensor:
        seen.append((len(ids), len(caches)))
        return read(self, ids, caches)

    monkeypatch.setattr(Reader, "read", noting)
    return seen


@pytest.mark.parametrize("kept_once", [False, True])
def test_what_prompts_have_in_common_is_read_once(
    engine: Engine, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, kept_once: bool
) -> None:
    """Six guided samples: documents of 20 tokens, behind which the prompt has 5 more and the unconditional one 2."""
    monkeypatch.setattr(engine_module, "SHARED_TOKENS", 0 if kept_once else 10**6)
    documents = prompt(20, 0)
    job = Job(
        [*documents, *prompt(5, 1)],
        image(),
        replace(GUIDED, temperature=3.0, top_p=1.0),
        unconditional=[*documents, *prompt(2, 2)],
    )
    jobs = [replace(job, seed=seed) for seed in range(6)]
    completions = engine.run([*jobs, Job(prompt(3, 3), image(), GREEDY)])
    groups = 2 if kept_once else 1
    assert passes == [(23, 2), (7, 2)] + [(13, groups)] * (CODES_PER_IMAGE - 1)
    assert len({one.tokens for one in completions}) > 2
    assert_same(completions, [slow(engine, job) for job in [*jobs, Job(prompt(3, 3), image(), GREEDY)]])


def test_retrieved_documents_stay_read_for_later_jobs(engine: Engine, passes: list[tuple[int, int]]) -> None:
    documents = [V.doc, *prompt(9, 0), V.end, V.doc, *prompt(9, 1), V.end]
    jobs = [Job([*documents, V.doc, *prompt(count, 2)], ImageSpan(V, 1), GREEDY) for count in (1, 3, 5)]
    expected = [slow(engine, job) for job in jobs]
    fresh = Engine(engine.generator, V)
    assert_same([fresh.run([job])[0] for job in jobs], expected)
    assert [tokens for tokens, _ in passes] == [22, 2, 4, 6]
    assert (
        [fresh.run([job])[0] for job in jobs]
        == fresh.run(jobs)
        == [Engine(engine.generator, V).run([j])[0] for j in jobs]
    )

    passes.clear()
    kept = fresh._prefixes.nbytes
    one_only = Engine(engine.generator, V, prefix_bytes=kept)
    other = Job([V.doc, *prompt(20, 3), V.end, V.doc, V.image], ImageSpan(V, 1), GREEDY)  # as many tokens
    for job in (jobs[0], other, jobs[0]):
        one_only.run([job])
    assert [tokens for tokens, _ in passes] == [22, 2, 22, 2, 22, 2]
    assert one_only._prefixes.nbytes == kept
    passes.clear()
    Engine(engine.generator, V, prefix_bytes=0).run([jobs[0]] * 2)
    assert [tokens for tokens, _ in passes] == [22, 2]


def test_rows_of_finished_jobs_drop_out(engine: Engine, passes: list[tuple[int, int]]) -> None:
    engine.run([Job(prompt(4, 0), ImageSpan(V, count)) for count in (2, 5, 1)])
    assert [tokens for tokens, _ in passes] == [4, 2, 1, 1, 1]  # the prompt; then two jobs are left, then one


def test_long_prompts_are_read_in_pieces(
    engine: Engine, passes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "READ_TOKENS", 16)
    jobs = [Job(prompt(20, 1), ImageSpan(V, 1)), Job(prompt(11, 2), ImageSpan(V, 1))]
    completions = engine.run(jobs)
    assert [tokens for tokens, _ in passes] == [16, 15]
    assert_same(completions, [slow(engine, job) for job in jobs])


def test_changed_weights_are_noticed(engine: Engine) -> None:
    job = Job(prompt(4, 0), image())
    before = engine.run([job])
    with torch.no_grad():
        engine.generator.lm_head.weight.neg_()
    assert engine.run([job]) != before
    assert_same(engine.run([job]), [slow(engine, job)])


def test_memory_is_checked_before_the_start(engine: Engine) -> None:
    job = Job(prompt(4, 0), image())
    needed = engine.estimated_bytes([job])
    config = engine.generator.config
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * 4
    assert needed == 4 * 64 * per_token  # the prompt, and its row, doubled and copied; 64 is the granule
    Engine(engine.generator, V, cache_bytes=needed).run([job])
    with pytest.raises(CacheLimitError, match=r"job 0 needs up to .* GB for keys and values; .* GB may be taken"):
        Engine(engine.generator, V, cache_bytes=needed - 1).run([job])
    jobs = mixed_jobs()
    assert Engine(engine.generator, V, cache_bytes=2 * needed).run(jobs) == engine.run(jobs)  # one after the other


@pytest.mark.parametrize("seed", range(5))
def test_answers_are_what_was_asked_for(engine: Engine, seed: int) -> None:
    hot = Sampling(temperature=5.0)
    picture, words, filled = engine.run(
        [
            Job(prompt(4, seed), image(), hot, seed),
            Job(prompt(7, seed), text(6), hot, seed),
            Job(prompt(2, seed), Chain(ImageSpan(V, 3), Fixed(V, [V.infill(1)]), ImageSpan(V, 4)), hot, seed),
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
    plain = Job(prompt(5, 0), image(), Sampling(), seed=1)
    with_other = replace(plain, unconditional=prompt(9, 1), alone=prompt(2, 2))
    assert len(with_other.streams) == 1
    assert engine.run([plain]) == engine.run([with_other])


def grounded() -> list[Job]:
    """Greedy and drawn, with guidance and without, of one context and of two; the last has nothing to go by."""
    some = Job(prompt(20, 1), image(), replace(GREEDY, grounding=3.0), alone=prompt(4, 1))
    return [
        some,
        replace(some, constraint=text(), sampling=Sampling(grounding=1.5, top_p=0.8), seed=2),
        replace(some, sampling=replace(GUIDED, grounding=2.0), unconditional=prompt(7, 3), seed=3),
        replace(some, others=[Context(prompt(9, 5))]),
        replace(some, alone=None),
    ]


def test_grounded_jobs_equal_the_slow_twin_beside_others(engine: Engine) -> None:
    jobs = [*grounded(), *mixed_jobs()]
    assert_same(engine.run(jobs), [slow(engine, job) for job in jobs])
    assert [len(job.streams) for job in grounded()] == [2, 2, 3, 3, 1]
    assert engine.run(grounded()) == engine.run(jobs)[:5]
    first, *_, last = engine.run(grounded())
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


def test_the_log_probability_of_a_completion_is_its_score(engine: Engine) -> None:
    """Where every id is allowed, the two ways to ask are one."""

    class Anything(ImageSpan):
        def allowed(self) -> np.ndarray:
            return np.ones(V.size, dtype=bool)

    job = Job(prompt(6, 0), Anything(V, 7), GUIDED, seed=3, unconditional=prompt(3, 0))
    completion = engine.run([job])[0]
    (score,) = engine.score([job.prompt], [completion.tokens])
    assert completion.log_probability == pytest.approx(float(score.sum()), abs=1e-4)


def test_progress(engine: Engine) -> None:
    calls: list[tuple[int, int]] = []
    jobs = [Job(prompt(3, 0), text(12), GREEDY), Job(prompt(3, 1), image()), Job(prompt(3, 2), text(2))]
    Engine(engine.generator, V, max_rows=2).run(jobs, on_step=lambda done, total: calls.append((done, total)))
    assert {total for _, total in calls} == {13 + CODES_PER_IMAGE + 3}
    assert calls[-1][0] == calls[-1][1]
    assert all(a[0] < b[0] for a, b in pairwise(calls))


def test_no_jobs(engine: Engine) -> None:
    assert engine.run([]) == []
    assert engine.score([], []) == []


def test_a_prompt_that_just_fits_and_one_that_does_not(engine: Engine) -> None:
    long = prompt(64 - CODES_PER_IMAGE, 0)
    short = Job(prompt(3, 1), image(), GREEDY)
    fits = Job(long, image(), GREEDY)
    assert_same(engine.run([short, fits]), [slow(engine, short), slow(engine, fits)])
    message = "job 1: 56 tokens and up to 9 new ones exceed the generator's context of 64"
    with pytest.raises(PromptTooLongError, match=message):
        engine.run([short, Job([*long, V.image_start], image())])
    with pytest.raises(PromptTooLongError, match=message):
        engine.run([fits, replace(short, unconditional=[*long, V.image_start], sampling=GUIDED)])
    engine.score([long], [prompt(CODES_PER_IMAGE, 0)])
    with pytest.raises(PromptTooLongError, match="pair 0: 65 tokens"):
        engine.score([long], [prompt(CODES_PER_IMAGE + 1, 0)])


def test_bad_requests(engine: Engine) -> None:
    with pytest.raises(InputError, match="a prompt has at least one token"):
        Job([], image())
    with pytest.raises(InputError, match="a prompt has at least one token"):
        Job(prompt(3, 0), image(), alone=[])
    with pytest.raises(ConfigError, match=r"guidance is 2.5, but the job has no unconditional prompt"):
        Job(prompt(3, 0), image(), GUIDED)
    with pytest.raises(ConfigError, match="seed is -1"):
        Job(prompt(3, 0), image(), seed=-1)
    with pytest.raises(InputError, match=f"job 0: id {V.size}, which is outside .*; allowed are 0 to {V.size - 1}"):
        engine.run([Job([V.doc, V.size], image())])
    with pytest.raises(InputError, match="2 prompts and 1 continuations"):
        engine.score([[1], [2]], [[3]])
    with pytest.raises(InputError, match="pair 0: the prompt or the continuation is empty"):
        engine.score([[1]], [[]])
    with pytest.raises(ConfigError, match="the vocabulary has 71"):
        Engine(engine.generator, Vocabulary(text_size=21, image_size=12))
    with pytest.raises(ConfigError, match="job 0 has 6 streams; max_rows is 4, so give it fewer contexts"):
        Engine(engine.generator, V, max_rows=4).run([ensembles()[1]])
    with pytest.raises(ConfigError, match="guidance is 2.5, .* give one to every context"):
        Job(prompt(3, 0), image(), GUIDED, unconditional=[1], others=[Context(prompt(3, 1))])
    with pytest.raises(ConfigError, match="max_rows is 1"):
        Engine(engine.generator, V, max_rows=1)


def test_a_constraint_that_allows_nothing(engine: Engine) -> None:
    class Nothing(ImageSpan):
        def allowed(self) -> np.ndarray:
            return np.zeros(V.size, dtype=bool)

    good = Job(prompt(3, 1), image())
    expected = engine.run([good])
    mate = engine.submit(good)
    engine.step()
    with pytest.raises(MarkupError, match="allows no id at all"):
        engine.run([Job(prompt(3, 0), Nothing(V, 2))])
    assert mate.done  # a step that fails cancels the batch, and the next one starts afresh
    assert engine.step() == []
    assert engine.run([good]) == expected


def test_log_probabilities_are_of_the_allowed_ids(engine: Engine) -> None:
    """A single allowed id is certain, whatever the generator thinks of it."""
    (completion,) = engine.run([Job(prompt(3, 0), Fixed(V, [V.end, V.eos]))])
    assert completion == Completion((), 0.0, 2)
    assert math.copysign(1, completion.log_probability) == 1
