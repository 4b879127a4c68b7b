"""Packed rows against every sequence alone: values and gradients; nothing leaks from one sequence to another."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager

from racm3.errors import PromptTooLongError
from racm3.generator import packing
from racm3.generator.loss import weighted_cross_entropy
from racm3.generator.model import Generator, GeneratorConfig
from racm3.generator.packing import packed_attention

CONFIG = GeneratorConfig(61, 24, 2, heads=4, kv_heads=2, head_dim=8, mlp_width=40, context_tokens=32)
LENGTHS = [7, 1, 12, 3]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def obvious_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """The whole row at once, under a mask that says what each token sees."""
    n, shared = len(q), q.shape[1] // k.shape[1]
    of = torch.bucketize(torch.arange(n), offsets[1:], right=True)
    visible = (of[:, None] == of[None]) & torch.ones(n, n).tril().bool()
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    scores = torch.einsum("qhe,khe->hqk", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("hqk,khe->qhe", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.integers(1, 9)
)
def test_attention_equals_the_masked_row(lengths: list[int], heads: tuple[int, int], block: int) -> None:
    torch.manual_seed(sum(lengths))
    offsets = offsets_of(lengths)
    q, k, v = (torch.randn(sum(lengths), count, 4, requires_grad=True) for count in (heads[0], heads[1], heads[1]))
    dy = torch.randn(q.shape)
    expected = obvious_attention(q, k, v, offsets)
    with pytest.MonkeyPatch.context() as patched:  # so that sequences are longer than a block, or as long, or shorter
        patched.setattr(packing, "BLOCK_TOKENS", block)
        y = packed_attention(q, k, v, offsets, max(lengths))
        found = torch.autograd.grad(y, (q, k, v), dy)
    assert torch.allclose(y, expected, atol=1e-5)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (q, k, v), dy), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_attention_in_bfloat16_is_close() -> None:
    torch.manual_seed(0)
    offsets = offsets_of(LENGTHS)
    exact = [torch.randn(sum(LENGTHS), 2, 8, requires_grad=True) for _ in range(3)]
    rough = [x.detach().bfloat16().requires_grad_() for x in exact]
    dy = torch.randn(exact[0].shape)
    expected = torch.autograd.grad(packed_attention(*exact, offsets, 12), exact, dy)
    for ours, theirs in zip(
        torch.autograd.grad(packed_attention(*rough, offsets, 12), rough, dy.bfloat16()), expected, strict=True
    ):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()


def test_torch_agrees_that_the_operations_are_well_formed() -> None:
    q, k, v = (torch.randn(sum(LENGTHS), count, 8, requires_grad=True) for count in (4, 2, 2))
    torch.library.opcheck(packing._attend, (q, k, v, offsets_of(LENGTHS)))


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(0)
    generator = Generator(CONFIG)
    with torch.no_grad():
        for weight in generator.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return generator


def gradient(generator: Generator, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(generator.parameters()))])


@pytest.mark.parametrize("recompute_layers", [False, True])
def test_a_packed_row_equals_its_sequences_alone(generator: Generator, recompute_layers: bool) -> None:
    generator.train_fast(compile=False, recompute_layers=recompute_layers)
    ids, targets, weights = torch.randint(61, (23,)), torch.randint(61, (23,)), torch.rand(23)
    hidden = generator(ids[None], offsets=offsets_of(LENGTHS))[0]
    alone = [generator(part[None])[0] for part in ids.split(LENGTHS)]
    assert torch.allclose(hidden, torch.cat(alone), atol=1e-5)

    packed = weighted_cross_entropy(hidden, generator, targets, weights, z_loss=0.01).total
    losses = [
        weighted_cross_entropy(h, generator, target, weight, z_loss=0.01, normaliser=weights.sum()).total
        for h, target, weight in zip(alone, targets.split(LENGTHS), weights.split(LENGTHS), strict=True)
    ]
    assert packed.item() == pytest.approx(sum(losses).item(), rel=1e-5)  # type: ignore[union-attr]
    assert torch.allclose(gradient(generator, packed), gradient(generator, sum(losses)), atol=1e-5)  # type: ignore


@pytest.mark.parametrize("recompute_layers", [False, True])
def test_one_compiled_layer_serves_all_layers_and_lengths(
    generator: Generator, recompute_layers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend, fullgraph=True))
    rows = [(torch.randint(61, (1, sum(lengths))), offsets_of(lengths)) for lengths in (LENGTHS, [5, 9], [32, 1, 4])]
    expected = [gradient(generator, generator(ids, offsets=offsets).square().mean()) for ids, offsets in rows]
    torch.compiler.reset()
    generator.train_fast(compile=True, recompute_layers=recompute_layers)
    for (ids, offsets), theirs in zip(rows, expected, strict=True):
        ours = gradient(generator, generator(ids, offsets=offsets).square().mean())
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert len(graphs) == 1


def test_nothing_leaks(generator: Generator) -> None:
    """Another third sequence changes no other's hidden states, and the loss of the others no embedding of it."""
    ids = torch.arange(23)  # every token another id, so that its embedding's gradient is its own
    changed = ids.clone()
    changed[8:20] += 30
    offsets = offsets_of(LENGTHS)
    with torch.no_grad():
        same = (generator(ids[None], offsets=offsets) == generator(changed[None], offsets=offsets))[0].all(-1)
    assert same.tolist() == [not 8 <= place < 20 for place in range(23)]
    hidden = generator(ids[None], offsets=offsets)[0]
    hidden[[*range(8), *range(20, 23)]].square().sum().backward()
    touched = generator.model.embed_tokens.weight.grad[:23].abs().sum(-1) > 0  # type: ignore[index]
    assert touched.tolist() == [not 8 <= place < 20 for place in range(23)]


def test_a_sequence_beyond_the_context(generator: Generator) -> None:
    with pytest.raises(PromptTooLongError, match="33 tokens were given; the generator reads at most 32"):
        generator(torch.zeros(1, 40, dtype=torch.long), offsets=offsets_of([7, 33]))
