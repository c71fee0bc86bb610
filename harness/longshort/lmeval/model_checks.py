"""Checks that a model's numbers mean what they are called: it is decoder-only and embeds every token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longshort.errors import UserError
from longshort.lmeval.documents import EncodedDocument
from longshort.scoring.causality import require_causal


def require_decoder_only(model: Any, backend: str | None) -> None:
    """Refuse encoder-decoders and encoders.

    Args:
        model: the model inside lm-eval's ``hf`` backend.
        backend: how lm-eval classifies it, "causal" or "seq2seq".

    Raises:
        UserError: it is an encoder-decoder or an encoder ("unsupported").
    """
    if backend != "causal":
        name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            f"'{name}' is not a decoder-only model, and perplexity and misalignment by length are defined for those "
            "alone. Use a causal model.",
            "unsupported",
        )
    require_causal(model)


def require_embeddings(model: Any, documents: Iterable[EncodedDocument]) -> None:
    """Refuse documents with tokens for which the model has no embedding.

    Raises:
        UserError: a token id is beyond the embedding's rows ("setting").
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    largest = max((int(document.tokens.max()) for document in documents if len(document.tokens)), default=-1)
    if rows is not None and largest >= rows:
        raise UserError(
            f"the tokenizer produces token {largest}, but the model has a vocabulary of {rows}: they do not belong "
            "together. Set the model argument tokenizer=… to the model's own tokenizer.",
            "setting",
        )
