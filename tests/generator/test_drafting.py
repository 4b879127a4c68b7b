"""Drafts change no output: the slow twin is the same engine without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from racm3.generator import drafting
from racm3.generator.constraints import Chain, Constraint, Fixed, ImageSpan, TextSpan
from racm3.generator.drafting import Drafter
from racm3.generator.engine import Context, Engine, SequenceRequest
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.model_runner import ModelRunner
from racm3.generator.sampling import Sampling, filter_logits
from racm3.tokens.vocabulary import Vocabulary

V = Vocabulary(text_size=6, image_size=5)
ROW, CODES = 3, 9
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "plain": Sampling(),
    "top-k": Sampling(temperature=0.7, top_k=3),
    "top-p": Sampling(temperature=1.5, top_p=0.7),
    "min-p": Sampling(min_p=0.2),
    "guided": Sampling(guidance=2.5, top_p=0.9),
    "contrast": Sampling(contrast_k=2),
    "context-aware": Sampling(context_aware=1.5),
    "all": Sampling(temperature=0.8, top_k=4, top_p=0.9, min_p=0.05, context_aware=1.25, guidance=1.5),
}


def generator(vocabulary: Vocabulary) -> Generator:
    """With opinions of its own, for untrained ones find all tokens equally likely."""
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(vocabulary.size, 32, 2, 4, 2, 8, 64, context_tokens=96))
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return generator.eval()


@pytest.fixture(scope="module")
def both() -> tuple[Engine, Engine]:
    """With drafts and without."""
    model = generator(V)
    return Engine(model, V), Engine(model, V, drafts=False)


def requests(count: int) -> Iterator[SequenceRequest]:
    """Of all kinds: pictures, texts, infills and spans with given codes, each way of drawing, ensembles; prompts repeat
    themselves, as documents about one thing do."""
    rng = np.random.default_rng(0)
    constraints: list[tuple[Constraint, int | None]] = [
        (ImageSpan(V, CODES), ROW),
        (ImageSpan(V, 20, {3: 1, 4: 2, 10: 0}), None),
        (TextSpan(V, [V.end, V.eos], 12), None),
        (
            Chain(ImageSpan(V, 4), Fixed(V, [V.infill(1)]), ImageSpan(V, 5), Fixed(V, [V.infill(2)]), ImageSpan(V, 1)),
            None,
        ),
        (Chain(TextSpan(V, [V.infill(1)], 5), Fixed(V, [V.infill(1)]), TextSpan(V, [V.eos], 6)), None),
    ]
    kinds = list(product(constraints, SAMPLINGS.values()))
    for number in range(count):
        (constraint, row), sampling = kinds[number % len(kinds)]
        part = rng.integers(V.text_start, V.size, rng.integers(2, 10)).tolist()
        before = [V.doc, *part, V.end, *part] * int(rng.integers(1, 3))
        prompt, other, lone = [*before, V.doc, *part], [*before, V.doc], [V.doc, *part]
        others = [Context([V.doc, *reversed(part)], other)] if number % 7 == 0 else []
        yield SequenceRequest(prompt, constraint, sampling, number, other, others, lone, row)


def test_a_thousand_outputs_are_those_without_drafts(
    both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, in full batches and, some of them, alone; guesses are made boldly, many right and many wrong."""
    monkeypatch.setattr(drafting, "READING", 100)
    monkeypatch.setattr(drafting, "FULL", 65)
    with_drafts, without = both
    asked = list(requests(1000))
    expected = without.run(asked)
    right: list[int] = []
    judge = Drafter.judge
    monkeypatch.setattr(Drafter, "judge", lambda self, *of: (right.append(of[1]), judge(self, *of))[1])
    assert with_drafts.run(asked) == expected
    assert [with_drafts.run([one])[0] for one in asked[::9]] == expected[::9]
    assert sum(right) > 1000
    assert right.count(0) > 1000


@pytest.mark.parametrize("name", SAMPLINGS)
def test_distributions_by_enumeration(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of tokens has the probability that it should have, whether guesses are right or wrong.

    A token is drawn by one random number; so it is enough to look at both sides of each end of the intervals that the
    exact probabilities, of whole sequences read afresh, give to every token.
    """
    v = Vocabulary(text_size=1, image_size=3)
    model, sampling = generator(v), SAMPLINGS[name]
    engine = Engine(model, v)
    prompt, other, lone = [v.doc, v.image_start, v.image], [v.doc, v.image], [v.text, v.image]
    request = SequenceRequest(prompt, ImageSpan(v, 3), sampling, 0, other, without_context=lone)

    def logits(ids: list[int]) -> Tensor:  # (1, V)
        with torch.no_grad():
            return model.logits(model(torch.tensor([ids])))[:, -1, v.image_start :]

    def probabilities(*drawn: int) -> list[float]:
        streams = [logits([*ids, *(v.image_start + code for code in drawn)]) for ids in (prompt, other, lone)]
        if sampling.temperature == 0:
            return torch.nn.functional.one_hot(streams[0].argmax(), 3).double().tolist()
        aware = streams[2] if sampling.context_aware != 1 else None
        guided = streams[1] if sampling.unconditional else None
        allowed = torch.ones(1, 3, dtype=torch.bool)
        return filter_logits(streams[0], guided, aware, allowed, [sampling])[0].double().softmax(-1).tolist()

    def sides(*drawn: int) -> Iterator[tuple[int, float]]:
        """(token, number) at both ends of the interval of each token that is possible."""
        start = 0.0
        for code, probability in enumerate(probabilities(*drawn)):
            if probability > 1e-4:
                yield code, start + 1e-5
                yield code, start + probability - 1e-5
            start += probability

    guesses = iter(())
    monkeypatch.setattr(Drafter, "_guess", lambda self: (v.image_start + next(guesses), 1.0))
    monkeypatch.setattr(drafting, "READING", 100)
    for guess in range(3):
        for first, number in sides():
            for second, following in sides(first):
                for third, last in sides(first, second):
                    running = engine.submit(request)
                    running.uniform = [number, following, last]
                    guesses = iter([guess] * 9)
                    while not running.done:
                        engine.step()
                    assert running.output.tokens == tuple(v.image_start + code for code in (first, second, third))


def test_a_copied_picture_takes_few_passes() -> None:
    """A source at an offset: its row ends where the picture's does not, and the guesses go on in the next row."""
    v = Vocabulary(text_size=20, image_size=50)
    source = np.random.default_rng(0).integers(v.image_start, v.size, 64).tolist()
    drawn = [*source[11:], *source[:11]]
    drafter = Drafter([v.image, *source, v.end], 64, row=8)
    constraint = ImageSpan(v, 64)
    passes = count = 0
    while count < 64:
        drafter.push(drawn[count])
        constraint.push(drawn[count])
        count, passes = count + 1, passes + 1
        if count == 64:
            break
        guesses, allowed, expected = drafter.draft(constraint, 1)
        assert len(allowed) == len(guesses) + 1
        assert 0 <= expected <= len(guesses)
        right = next((i for i, id in enumerate(guesses) if id != drawn[count + i]), len(guesses))
        for id in guesses[:right]:
            drafter.push(id)
            constraint.push(id)
        drafter.judge(expected, right)
        count += right
    assert passes <= 12


def test_forced_ids_are_no_guesses() -> None:
    """Sentinels and given codes are right for certain, and so read in one pass with what stands before them."""
    drafter = Drafter([V.doc, V.image_start], 8)
    drafter.push(V.image_start + 1)
    chain = Chain(Fixed(V, [V.infill(1), V.infill(2)]), ImageSpan(V, 3, {0: 2, 1: 3}))
    guesses, _, expected = drafter.draft(chain, 1)
    assert guesses == [V.infill(1), V.infill(2), V.image_start + 2, V.image_start + 3]
    assert expected == 4


def test_a_full_batch_wants_surer_guesses_and_failure_makes_doubtful() -> None:
    constraint = ImageSpan(V, 30)

    def guesses(beside: int, failed: int = 0) -> int:
        drafter = Drafter([V.image_start + code for code in (0, 1, 2, 3) * 4], 30)
        drafter.push(V.image_start)
        drafter.judge(failed, 0)
        return len(drafter.draft(constraint, beside)[0])

    assert guesses(1) == drafting.MOST
    assert guesses(1, failed=100) == 0
    assert guesses(15) > 0
    assert guesses(16) == 0


def test_passes_carry_the_drafts(both: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture that repeats one code is drawn in a few passes, and events come in order."""
    engine, _ = both
    sizes: list[int] = []
    forward = ModelRunner.forward
    monkeypatch.setattr(
        ModelRunner, "forward", lambda self, ids, caches: (sizes.append(len(ids)), forward(self, ids, caches))[1]
    )
    given = dict.fromkeys(range(1, 29), 1)
    request = SequenceRequest([V.doc, V.image], ImageSpan(V, 30, given), replace(SAMPLINGS["plain"]))
    events = list(engine.stream([request]))
    assert [event.id for event in events][1:29] == [V.image_start + 1] * 28
    assert [event.done for event in events] == [False] * 29 + [True]
    assert len(sizes) == 3
    assert sizes[1] == drafting.MOST + 1
