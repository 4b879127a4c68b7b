"""The tiny models that the tests of the evaluation use."""

from tests.evaluation.conftest import judge, models, retrieval, vanilla

__all__ = ["judge", "models", "retrieval", "vanilla"]
