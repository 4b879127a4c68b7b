"""Sampling: from the logits of one step to one token a row.

*Filters* are pure functions on logits, which ``filter_logits`` puts in their order; ``choose`` draws.

Letters in shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from racm3.errors import ConfigError
from racm3.util.options import check_ranges, documented, option
from racm3.util.registry import Registry

__all__ = [
    "FILTERS",
    "LogitFilter",
    "Sampling",
    "choose",
    "contrast",
    "filter_logits",
    "guide",
    "keep_allowed",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "temper",
]


CANDIDATES = 16
"""Most probable tokens among which the end of top p is sought first: most rows need no more, and all take longer."""


LogitFilter = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, V) and a value for each row (B,) to logits (B, V), -inf where a token is excluded."""

FILTERS: Registry[LogitFilter] = Registry("logit filter")
"""Filters of other packages, which ``Sampling.filters`` asks for; they come behind ours."""


@documented
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults draw from the model's own distribution.

    Letters: cond are the logits of the whole prompt, uncond those of the prompt without the main document's words.
    Raises ConfigError if a value is out of range, a filter is unknown, or both guidance and contrast_k are asked for.
    """

    temperature: float = option(1.0, "0 takes the most probable token, 1 draws as the model believes.", least=0)
    top_k: int | None = option(None, "Keep the k most probable tokens.", least=1)
    top_p: float = option(1.0, "Keep the fewest tokens that have this probability together.", above=0, most=1)
    min_p: float = option(
        0.0, "Keep the tokens at least this many times as probable as the most probable one.", least=0, most=1
    )
    context_aware: float = option(
        1.0,
        "How much the retrieved documents count; 1 is as usual. The logits become without + g * (cond - without), "
        "where without is the main document by itself (context-aware decoding, Shi et al. 2023, arXiv 2305.14739; "
        "alpha is g - 1).",
        least=0,
    )
    guidance: float = option(
        1.0,
        "How much the main document's words count; 1 is as usual and costs nothing. The logits become "
        "uncond + g * (cond - uncond) (classifier-free guidance).",
        least=0,
    )
    contrast_k: int | None = option(
        None,
        "Contrastive decoding instead of guidance (CD-K of CM3Leon): log p_cond - log p_uncond, over tokens with "
        "p_cond at least contrast_alpha times the k-th largest.",
        least=1,
    )
    contrast_alpha: float = option(
        0.1, "See contrast_k. CM3Leon's is not known to us; 0.1 is that of Li et al. 2022.", above=0, most=1
    )
    filters: dict[str, float] = option(
        {}, "Further logit filters by name (racm3.generator.sampling.FILTERS), each with its value."
    )

    def __post_init__(self) -> None:
        check_ranges(self, "sampling")
        if self.contrast_k is not None and self.guidance != 1:
            raise ConfigError(f"guidance is {self.guidance} and contrast_k {self.contrast_k}; leave one of them out")
        for name in self.filters:
            FILTERS.get(name)

    @property
    def unconditional(self) -> bool:
        """Whether the unconditional prompt is read as well."""
        return self.guidance != 1 or self.contrast_k is not None


# Filters: logits (B, V) to logits (B, V), -inf where a token is excluded.


def guide(conditional: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """Away from another prompt's logits: other + g * (cond - other), with g (B,) of each row. Classifier-free guidance
    if the other is the unconditional prompt, context-aware decoding if it is the main document by itself."""
    return other + strength[:, None] * (conditional - other)


def contrast(conditional: Tensor, unconditional: Tensor, k: Tensor, alpha: Tensor) -> Tensor:
    """CD-K: log p_cond - log p_uncond, over tokens with p_cond >= alpha (B,) x the k-th largest p_cond (k (B,))."""
    own, other = conditional.log_softmax(-1), unconditional.log_softmax(-1)
    least = _ranked(own, k) + alpha.log()[:, None]  # (B, 1)
    return (own - other).masked_fill((own < least) | own.isneginf(), -math.inf)


def keep_allowed(logits: Tensor, allowed: Tensor) -> Tensor:
    """Exclude what is not allowed: (B, V), (B, V) bool -> (B, V)."""
    return logits.where(allowed, -math.inf)


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Keep the k (B,) most probable tokens of each row, and those equal to the last of them."""
    return logits.masked_fill(logits < _ranked(logits, k), -math.inf)


def _ranked(logits: Tensor, k: Tensor) -> Tensor:
    """The k-th (B,) largest value of each row, or the smallest if there are fewer: (B, 1)."""
    k = k.clamp(max=logits.shape[-1])
    return logits.topk(int(k.max())).values.gather(-1, k[:, None] - 1)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the fewest most probable tokens of each row whose probability together is at least p (B,), and equals.

    As ``keep_top_k`` does, it keeps those that are as probable as the last of them.
    """
    probability = logits.softmax(-1)  # (B, V)
    least = torch.zeros_like(p, dtype=probability.dtype)  # rounding can bring the sum to 1 before the last token
    (rows,), candidates, most = (p < 1).nonzero(as_tuple=True), CANDIDATES, logits.shape[-1]
    while len(rows):
        top = probability[rows].topk(min(candidates, most)).values  # (rows, candidates)
        kept = top.cumsum(-1) - top < p[rows, None]
        least[rows] = top.where(kept, math.inf).amin(-1)
        rows = rows[kept[:, -1]] if candidates < most else rows[:0]
        candidates *= 4
    return logits.masked_fill(probability < least[:, None], -math.inf)


def keep_min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the tokens of each row that are at least p (B,) times as probable as the most probable one."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + p.log()[:, None], -math.inf)


def temper(logits: Tensor, temperature: Tensor) -> Tensor:
    """Set the largest logit of each row to 0 and divide by the temperature (B,); by 1 where that is 0, for greedy."""
    below = logits - logits.amax(-1, keepdim=True)  # so that no temperature is too small
    return below / temperature.where(temperature > 0, 1)[:, None]


def filter_logits(
    conditional: Tensor,
    unconditional: Tensor | None,
    without_context: Tensor | None,
    allowed: Tensor,
    samplings: Sequence[Sampling],
) -> Tensor:
    """All filters in their order, each only if a row asks for it: what ``choose`` draws from, (B, V).

    ``unconditional`` and ``without_context`` (B, V) are the logits of those prompts; None if no row asks for them. In
    rows that do not, ``unconditional`` may be anything, and ``without_context`` is ``conditional``.
    """

    def each(values: Iterable[float]) -> Tensor:  # (B,)
        return torch.tensor(list(values), device=conditional.device)

    if without_context is not None:
        conditional = guide(conditional, without_context, each(s.context_aware for s in samplings))
    scores = keep_allowed(conditional, allowed)
    if unconditional is not None:
        other = keep_allowed(unconditional, allowed)
        guided = guide(conditional, unconditional, each(s.guidance for s in samplings))
        contrasted = [s.contrast_k is not None for s in samplings]
        if any(contrasted):
            k, alpha = each(s.contrast_k or 1 for s in samplings), each(s.contrast_alpha for s in samplings)
            guided = contrast(scores, other, k, alpha).where(each(contrasted)[:, None], guided)
        scores = keep_allowed(guided, allowed)
    scores = temper(scores, each(s.temperature for s in samplings))
    if any(s.top_k is not None for s in samplings):
        scores = keep_top_k(scores, each(s.top_k or conditional.shape[-1] for s in samplings))
    if any(s.top_p < 1 for s in samplings):
        scores = keep_top_p(scores, each(s.top_p for s in samplings))
    if any(s.min_p > 0 for s in samplings):
        scores = keep_min_p(scores, each(s.min_p for s in samplings))
    for name in sorted({name for s in samplings for name in s.filters}):
        rows = [row for row, s in enumerate(samplings) if name in s.filters]
        scores[rows] = FILTERS.get(name)(scores[rows], each(samplings[row].filters[name] for row in rows))
    return scores


def choose(logits: Tensor, uniform: Tensor, greedy: Tensor) -> Tensor:
    """One token a row: (B, V), (B,) in [0, 1), (B,) bool -> (B,).

    The most probable token where ``greedy``, else the one whose interval of the cumulative distribution holds
    ``uniform``: a row's token depends on nothing but its own logits and number.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)  # (B, V)
    total = cumulative[:, -1:]  # near 1; a target that rounding brings up to it would lie behind the last token
    target = torch.minimum(uniform.double()[:, None] * total, total.nextafter(torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return logits.argmax(-1).where(greedy, drawn)
