"""The tiny checkpoint and corpus of the lm-eval tests."""

from tests.lmeval.conftest import corpus, llama

__all__ = ["corpus", "llama"]
