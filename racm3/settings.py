"""Settings: how a request is completed."""

from __future__ import annotations

from dataclasses import dataclass

from racm3.errors import ConfigError
from racm3.generator.sampling import Sampling

__all__ = ["USUAL", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How to complete. ``k`` documents are read at a time (2 at inference in the paper). With several ``contexts``, as
    many times k are retrieved, each context reads k of them, and the predictions of all are averaged at every step.
    Of ``samples`` the best is kept: images by the encoder's score of picture and words (the paper: of 10), texts by
    perplexity (the paper: of 32). At temperature 0 all samples are the same, and one is drawn. The strength of
    context-aware decoding was chosen on scenes that no result looks at (docs/log.md)."""

    k: int = 2
    contexts: int = 1
    samples: int = 1
    image: Sampling = Sampling(temperature=0.5, top_p=0.9, context_aware=1.25)
    text: Sampling = Sampling(temperature=0.0, context_aware=1.25)
    max_text_tokens: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("k", 0), ("contexts", 1), ("samples", 1), ("max_text_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {least} or above")


USUAL = Settings()
