"""Sampling: from the logits of one step to one token a row.

*Filters* are pure functions on logits, which ``filter_logits`` puts in their order; ``choose`` draws.

Letters in shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from racm3.errors import ConfigError

__all__ = [
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


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. The defaults draw from the model's own distribution.

    ``temperature`` 0 takes the most probable token. ``top_k`` keeps the k most probable tokens, ``top_p`` the fewest
    that have this probability together, ``min_p`` those at least this times as probable as the most probable one.
    ``context_aware`` g moves away from what the generator would say without the retrieved documents: the logits become
    without + g * (with - without), before all else (context-aware decoding, Shi et al. 2023, arXiv 2305.14739, whose
    alpha is g - 1). Two ways to move away from the unconditional prompt: ``guidance`` g (classifier-free guidance)
    makes the logits uncond + g * (cond - uncond), 1 is none and costs nothing; ``contrast_k`` k makes them
    log p_cond - log p_uncond, over tokens with p_cond at least
    ``contrast_alpha`` times the k-th largest (CM3Leon's CD-K; its alpha is not known to us, 0.1 is the value of
    contrastive decoding's own paper, Li et al. 2022).
    Raises ConfigError if a value is out of range, or both ways are asked for.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    context_aware: float = 1.0
    guidance: float = 1.0
    contrast_k: int | None = None
    contrast_alpha: float = 0.1

    def __post_init__(self) -> None:
        for name, value, fits, allowed in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or above"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or above, or None"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("context_aware", self.context_aware, 0 <= self.context_aware < math.inf, "0 or above"),
            ("guidance", self.guidance, 0 <= self.guidance < math.inf, "0 or above"),
            ("contrast_k", self.contrast_k, self.contrast_k is None or self.contrast_k >= 1, "1 or above, or None"),
            ("contrast_alpha", self.contrast_alpha, 0 < self.contrast_alpha <= 1, "above 0 and at most 1"),
        ):
            if not fits:
                raise ConfigError(f"sampling.{name} is {value}; it must be {allowed}")
        if self.contrast_k is not None and self.guidance != 1:
            raise ConfigError(f"guidance is {self.guidance} and contrast_k {self.contrast_k}; leave one of them out")

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
