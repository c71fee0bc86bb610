"""What a model has to be for its numbers to mean what they say: decoder-only, with a row for every token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longshort.errors import UserError
from longshort.lmeval.documents import EncodedDocument
from longshort.scoring.causality import require_causal


def require_decoder_only(model: Any, backend: str | None) -> None:
    """Refuse encoder-decoders and encoders.

    Args:
        model: of lm-eval's ``hf`` backend.
        backend: what lm-eval takes it for, "causal" or "seq2seq".

    Raises:
        UserError: it is one of them.
    """
    if backend != "causal":
        name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            f"'{name}' is no decoder-only model, and misalignment and perplexity by length are measured of those "
            "alone. Name a causal model."
        )
    require_causal(model)


def require_rows(model: Any, documents: Iterable[EncodedDocument]) -> None:
    """Refuse tokens for which the model has no embedding.

    Raises:
        UserError: there are such.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    largest = max((int(document.tokens.max()) for document in documents if len(document.tokens)), default=-1)
    if rows is not None and largest >= rows:
        raise UserError(
            f"the tokenizer gives token {largest}, and the model has a vocabulary of {rows}: they do not belong "
            "together. Name its own among the model's arguments: tokenizer=…"
        )
