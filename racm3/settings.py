"""Settings: how a request is completed."""

from __future__ import annotations

from dataclasses import dataclass

from racm3.generator.sampling import Sampling
from racm3.util.options import check_ranges, documented, option

__all__ = ["USUAL", "Settings"]


@documented
@dataclass(frozen=True)
class Settings:
    """How to complete. The strength of context-aware decoding was chosen on scenes that no result looks at
    (docs/log.md). Raises ConfigError if a value is out of range."""

    k: int = option(2, "Documents read at a time (the paper: 2 at inference); 0: none.", least=0)
    contexts: int = option(
        1,
        "With several, so many times k documents are retrieved, each context reads k of them, and the predictions of "
        "all are averaged at every step.",
        least=1,
    )
    samples: int = option(
        1,
        "Make so many and keep the best: images by the encoder's score of picture and words (the paper: of 10), texts "
        "by perplexity (the paper: of 32). At temperature 0 all are the same, and one is made.",
        least=1,
    )
    image: Sampling = option(Sampling(temperature=0.5, top_p=0.9, context_aware=1.25), "How pictures are drawn.")
    text: Sampling = option(Sampling(temperature=0.0, context_aware=1.25), "How texts are written.")
    max_text_tokens: int = option(48, "The most tokens of a text.", least=1)
    seed: int = option(0, "The same one gives the same answer.", least=0)

    def __post_init__(self) -> None:
        check_ranges(self, "settings")


USUAL = Settings()
