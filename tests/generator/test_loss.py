"""The chunked loss against the whole one: forward and gradient, ragged last chunk included."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig


def whole_loss(generator: Generator, hidden: Tensor, targets: Tensor, weights: Tensor, z_loss: float) -> Tensor:
    """The slow, obvious version: all logits at once."""
    logits = generator.logits(hidden)
    nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")  # (B, T)
    log_z = logits.exp().sum(-1).log()
    return ((nll + z_loss * log_z**2) * weights).sum() / weights.sum()


def gradients(generator: Generator, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(generator.parameters())))


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def generator(request: pytest.FixtureRequest) -> Generator:
    torch.manual_seed(0)
    return Generator(GeneratorConfig(37, 16, 2, 2, 1, 8, 24, 16, tie_embeddings=request.param))


@pytest.mark.parametrize("chunk_tokens", [1, 7, 13, 39, 1000])  # 39 tokens: whole chunks, ragged ones, a single one
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_chunked_equals_whole(generator: Generator, chunk_tokens: int, z_loss: float) -> None:
    ids = torch.randint(37, (3, 14))
    weights = torch.rand(3, 13) * (torch.rand(3, 13) > 0.3)
    expected = whole_loss(generator, generator(ids[:, :-1]), ids[:, 1:], weights, z_loss)
    hidden = generator(ids[:, :-1])
    loss = weighted_cross_entropy(hidden, generator, ids[:, 1:], weights, z_loss=z_loss, chunk_tokens=chunk_tokens)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (loss.cross_entropy + loss.z_loss).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.weight.item() == pytest.approx(weights.sum().item(), rel=1e-5)
    for ours, theirs in zip(gradients(generator, loss.total), gradients(generator, expected), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_loss_of_every_token(generator: Generator) -> None:
    ids = torch.randint(37, (2, 9))
    hidden = generator(ids[:, :-1])
    loss = weighted_cross_entropy(hidden, generator, ids[:, 1:], torch.zeros(2, 8), chunk_tokens=5)
    expected = F.cross_entropy(generator.logits(hidden).transpose(1, 2), ids[:, 1:], reduction="none")
    assert torch.allclose(loss.token_nll, expected, atol=1e-5)
    assert not loss.token_nll.requires_grad
    assert expected.mean().item() == pytest.approx(math.log(37), abs=0.2)  # a new model knows nothing


def test_nothing_to_learn_is_no_loss(generator: Generator) -> None:
    ids = torch.randint(37, (2, 9))
    loss = weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], torch.zeros(2, 8))
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert all(weight.grad is not None and not weight.grad.any() for weight in generator.parameters())


def test_a_step_split_in_two_adds_up(generator: Generator) -> None:
    ids, weights = torch.randint(37, (4, 9)), torch.rand(4, 8)
    whole = weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights)
    parts = [
        weighted_cross_entropy(
            generator(ids[half, :-1]), generator, ids[half, 1:], weights[half], normaliser=weights.sum()
        ).total
        for half in (slice(0, 1), slice(1, 4))
    ]
    assert sum(parts).item() == pytest.approx(whole.total.item(), rel=1e-5)  # type: ignore[union-attr]


def test_logits_never_exist_at_once(generator: Generator) -> None:
    """The largest array that any operation makes has a chunk's logits, or is as large as the projection."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor))])
            return out

    ids = torch.randint(37, (3, 101))
    hidden = generator.model.embed_tokens(ids[:, :-1])
    with Watch():
        loss = weighted_cross_entropy(hidden, generator, ids[:, 1:], torch.ones(3, 100), chunk_tokens=10)
        loss.total.backward()
    assert 37 * 10 <= largest <= max(hidden.numel(), generator.lm_head.weight.numel()) < 37 * 300


def test_without_a_gradient(generator: Generator) -> None:
    ids, weights = torch.randint(37, (2, 9)), torch.ones(2, 8)
    expected = weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights, z_loss=0.1)
    with torch.no_grad():
        loss = weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights, z_loss=0.1)
    assert not loss.total.requires_grad
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=1e-6)


def test_the_gradient_scales_with_what_comes_from_above(generator: Generator) -> None:
    ids, weights = torch.randint(37, (2, 9)), torch.ones(2, 8)
    plain, tripled = (
        gradients(
            generator, factor * weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights).total
        )
        for factor in (1, 3)
    )
    for one, other in zip(plain, tripled, strict=True):
        assert torch.allclose(3 * one, other, atol=1e-6)


def test_bfloat16_autocast_is_close(generator: Generator) -> None:
    """The sums are in 32 bits whatever the matrix products are in."""
    ids, weights = torch.randint(37, (3, 14)), torch.ones(3, 13)
    exact = weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = weighted_cross_entropy(generator(ids[:, :-1]), generator, ids[:, 1:], weights)
    assert rough.total.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=1e-2)
    for ours, theirs in zip(gradients(generator, rough.total), gradients(generator, exact.total), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.05 * theirs.norm()
