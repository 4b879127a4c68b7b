"""Perplexity: how many tokens the generator wavers between, on average; of text and of image tokens apart.

The documents are read causally, without masks, each behind what it is given: nothing, or its retrieved documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from racm3.document import Document
from racm3.evaluation.bootstrap import Scores, interval
from racm3.pipeline import RACM3
from racm3.tokens.codec import token_documents

__all__ = ["document_perplexity", "perplexity"]


def perplexity(log_probabilities: Sequence[np.ndarray]) -> float:
    """exp of minus the mean log-probability, in nats, over all tokens of all documents, each (T,)."""
    return float(np.exp(-np.concatenate(log_probabilities).mean()))


def document_perplexity(model: RACM3, documents: Sequence[Document], given: Sequence[Sequence[Document]]) -> Scores:
    """Perplexity of the ``text`` and the ``image`` tokens of documents, each behind the documents it is ``given``.

    Markup counts for neither. Documents have both kinds of part.
    """
    v = model.markup.vocabulary
    own = [model.markup.to_ids(document) for document in token_documents(documents, model.text, model.image)]
    contexts = [token_documents(some, model.text, model.image) for some in given]
    before = [[id_ for document in context for id_ in model.markup.to_ids(document)] for context in contexts]
    # The first id opens a document: it is read, never predicted.
    scored = model.engine.score(
        [[*context, ids[0]] for context, ids in zip(before, own, strict=True)], [ids[1:] for ids in own]
    )
    kinds = {
        "text": [score[v.is_text(np.array(ids[1:]))] for score, ids in zip(scored, own, strict=True)],
        "image": [score[v.is_image(np.array(ids[1:]))] for score, ids in zip(scored, own, strict=True)],
    }
    result: Scores = {"n": len(own), "interval": {}}
    for kind, found in kinds.items():
        ends = interval(partial(_of_rows, found), len(own), resamples=200)
        result[kind] = round(perplexity(found), 3)
        result["interval"][kind] = [round(end, 3) for end in ends]
    return result


def _of_rows(log_probabilities: Sequence[np.ndarray], rows: np.ndarray) -> float:
    return perplexity([log_probabilities[row] for row in rows])
