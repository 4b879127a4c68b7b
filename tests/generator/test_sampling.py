"""Filters against slow, obvious versions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

from racm3.errors import ConfigError
from racm3.generator import sampling as sampling_module
from racm3.generator.sampling import (
    Sampling,
    choose,
    contrast,
    filter_logits,
    guide,
    keep_allowed,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    temper,
)

seeds = st.integers(0, 2**31)


def random_logits(seed: int, rows: int = 4, ids: int = 11) -> Tensor:
    """Some of them excluded already, as they are behind a constraint."""
    random = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, ids, generator=random)
    logits[:, 1:][torch.rand(rows, ids - 1, generator=random) < 0.3] = -math.inf
    return logits


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


def likeliest_first(row: Tensor) -> list[int]:
    return sorted((i for i in range(len(row)) if row[i] > -math.inf), key=lambda i: -float(row[i]))


@given(seeds, st.lists(st.integers(1, 20), min_size=4, max_size=4))
def test_top_k(seed: int, k: list[int]) -> None:
    logits = random_logits(seed)
    filtered = keep_top_k(logits, torch.tensor(k))
    assert kept(filtered) == [set(likeliest_first(row)[:n]) for row, n in zip(logits, k, strict=True)]
    assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()])


@pytest.mark.parametrize("candidates", [2, 256])
@given(seeds, st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4))
def test_top_p(candidates: int, seed: int, p: list[float]) -> None:
    def slow(row: Tensor, least: float) -> set[int]:
        chosen: list[int] = []
        for i in likeliest_first(row):
            together = sum(float(row.double().softmax(-1)[j]) for j in chosen)
            assume(least == 1 or abs(together - least) > 1e-5)  # nearer than that, rounding decides
            if together < least or least == 1:
                chosen.append(i)
        return set(chosen)

    logits = random_logits(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_module, "CANDIDATES", candidates)
        filtered = keep_top_p(logits, torch.tensor(p))
    assert kept(filtered) == [slow(row, least) for row, least in zip(logits, p, strict=True)]
    assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()])


def test_top_p_keeps_equals_of_the_last() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0, -1.0]])
    assert kept(keep_top_p(logits, torch.tensor([0.6]))) == [{0, 1, 2}]


def test_top_p_of_one_keeps_the_least_likely() -> None:
    logits = torch.tensor([[0.0, -40.0, -80.0]])
    assert torch.equal(keep_top_p(logits, torch.tensor([1.0])), logits)


@given(seeds, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_min_p(seed: int, p: list[float]) -> None:
    def slow(row: Tensor, least: float) -> set[int]:
        probability = row.double().softmax(-1)
        shares = {i: float(probability[i] / probability.max()) for i in likeliest_first(row)}
        assume(all(least in (0, 1) or abs(share - least) > 1e-5 for share in shares.values()))
        return {i for i, share in shares.items() if share >= least}

    logits = random_logits(seed)
    assert kept(keep_min_p(logits, torch.tensor(p))) == [slow(row, n) for row, n in zip(logits, p, strict=True)]


@given(seeds, st.lists(st.integers(1, 20), min_size=4, max_size=4), st.sampled_from([0.1, 0.5, 1.0]))
def test_contrast(seed: int, k: list[int], alpha: float) -> None:
    conditional = random_logits(seed)
    unconditional = random_logits(seed + 1).where(conditional.isfinite(), -math.inf).clamp(min=-50)
    contrasted = contrast(conditional, unconditional, torch.tensor(k), torch.full((4,), alpha))
    for row, own, other, n in zip(contrasted, conditional.softmax(-1), unconditional.softmax(-1), k, strict=True):
        kth = sorted((float(p) for p in own if p > 0), reverse=True)[: min(n, int((own > 0).sum()))][-1]
        for score, p, q in zip(row.tolist(), own.tolist(), other.tolist(), strict=True):
            if p > 1.001 * alpha * kth:
                assert score == pytest.approx(math.log(p) - math.log(q), abs=1e-4)
            elif p < 0.999 * alpha * kth:
                assert score == -math.inf


def test_the_filters_come_one_after_the_other_each_row_on_its_own() -> None:
    samplings = [
        Sampling(),
        Sampling(temperature=0.5, top_k=3, min_p=0.2),
        Sampling(guidance=2.0, top_p=0.6),
        Sampling(temperature=2.0, contrast_k=2, contrast_alpha=0.3),
        Sampling(context_aware=3.0, guidance=2.0),
    ]
    random = torch.Generator().manual_seed(3)
    own, other, alone = torch.randn(3, 5, 11, generator=random, dtype=torch.float64)
    alone[:4] = own[:4]
    allowed = torch.rand(5, 11, generator=random) < 0.7

    def one(value: float) -> Tensor:
        return torch.tensor([value])

    a, b = keep_allowed(own, allowed), keep_allowed(other, allowed)
    expected = [
        a[:1],
        keep_min_p(keep_top_k(2 * a[1:2], one(3)), one(0.2)),
        keep_top_p(keep_allowed(guide(own[2:3], other[2:3], one(2.0)), allowed[2:3]), one(0.6)),
        contrast(a[3:4], b[3:4], one(2), one(0.3)) / 2,
        keep_allowed(2 * (3 * own[4:] - 2 * alone[4:]) - other[4:], allowed[4:]),
    ]
    found = filter_logits(own, other, alone, allowed, samplings)
    assert torch.allclose(found.softmax(-1), torch.cat(expected).softmax(-1), atol=1e-6)
    assert torch.allclose(filter_logits(own[:2], None, None, allowed[:2], samplings[:2]), found[:2])
    assert torch.equal(filter_logits(own[:4], other[:4], None, allowed[:4], samplings[:4]), found[:4])


def test_guide() -> None:
    random = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 3, 5, generator=random, dtype=torch.float64)
    guided = guide(conditional, unconditional, torch.tensor([0.0, 1.0, 3.0]))
    assert torch.allclose(guided[0], unconditional[0])
    assert torch.allclose(guided[1], conditional[1])
    assert torch.allclose(guided[2], 3 * conditional[2] - 2 * unconditional[2], atol=1e-6)


def test_temper_and_keep_allowed() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    allowed = torch.tensor([[True, False, True]] * 3)
    probability = temper(keep_allowed(logits, allowed), torch.tensor([1.0, 2.0, 1e-38])).softmax(-1)
    for row, temperature in enumerate([1.0, 2.0]):
        a, c = math.exp(1 / temperature), math.exp(3 / temperature)
        assert probability[row].tolist() == pytest.approx([a / (a + c), 0.0, c / (a + c)])
    assert probability[2].tolist() == [0.0, 0.0, 1.0]


@given(seeds, st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4))
@example(seed=1, uniform=[0.0, 0.0, 1 - 2**-53, 0.0])
def test_choose_is_the_inverse_of_the_cumulative_distribution(seed: int, uniform: list[float]) -> None:
    def slow(row: Tensor, u: float) -> int:
        probabilities = row.double().softmax(-1).tolist()
        total, cumulative = sum(probabilities), 0.0  # the sum is 1 but for rounding
        for i, probability in enumerate(probabilities):
            cumulative += probability
            if u * total < cumulative:
                return i
        return max(i for i, probability in enumerate(probabilities) if probability > 0)

    logits = random_logits(seed)
    numbers, greedy = torch.tensor(uniform, dtype=torch.float64), torch.tensor([False, True, False, True])
    chosen = choose(logits, numbers, greedy).tolist()
    expected = [slow(row, u) for row, u in zip(logits, uniform, strict=True)]
    assert chosen[::2] == expected[::2]
    assert chosen[1::2] == [likeliest_first(row)[0] for row in logits[1::2]]
    assert all(math.isfinite(float(row[i])) for row, i in zip(logits, chosen, strict=True))


def test_choose_draws_each_token_as_often_as_it_should() -> None:
    logits = torch.tensor([0.5, 0.2, 0.0, 0.3]).log().expand(20000, 4)
    uniform = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = choose(logits, uniform, torch.zeros(20000, dtype=torch.bool)).bincount(minlength=4)
    assert (counts / 20000).tolist() == pytest.approx([0.5, 0.2, 0.0, 0.3], abs=0.02)
    assert counts[2] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -0.1}, "sampling.temperature is -0.1; it must be 0 or above"),
        ({"temperature": math.nan}, "sampling.temperature is nan"),
        ({"top_k": 0}, "sampling.top_k is 0; it must be 1 or above, or None"),
        ({"top_p": 0.0}, "sampling.top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "sampling.top_p is 1.5"),
        ({"guidance": -1.0}, "sampling.guidance is -1.0"),
        ({"min_p": 1.1}, "sampling.min_p is 1.1; it must be 0 to 1"),
        ({"contrast_k": 0}, "sampling.contrast_k is 0"),
        ({"contrast_alpha": 0.0}, "sampling.contrast_alpha is 0.0"),
        ({"contrast_k": 5, "guidance": 2.0}, "leave one of them out"),
    ],
)
def test_sampling_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**change)
