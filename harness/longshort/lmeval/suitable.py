"""What a model has to be for its numbers to mean what they say: decoder-only, causal, with a row for every token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from longshort.errors import UserError
from longshort.lmeval.documents import EncodedDocument

PROBE_TOKENS = 8
TOLERANCE = 1e-4  # of the greatest logit; a causal model gives the same ones

_causal: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def require_causal(model: Any, backend: str | None) -> None:
    """Refuse an encoder-decoder, and an encoder, whose predictions see the tokens that they predict.

    transformers loads BERT and its kin as causal models too, with a warning at most. Their configs say
    ``is_decoder: false``, as do those of a few decoders, so what says so is tried: does another last token change
    the logits before it?

    Args:
        model: of lm-eval's ``hf`` backend.
        backend: what lm-eval takes it for, "causal" or "seq2seq".

    Raises:
        UserError: it is one of them.
    """
    config: Any = getattr(model, "config", None)
    if backend != "causal":
        raise UserError(
            f"'{getattr(config, 'model_type', type(model).__name__)}' is no decoder-only model, and misalignment and "
            "perplexity by length are measured of those alone. Name a causal model."
        )
    if getattr(config, "is_decoder", None) is not False or model in _causal:
        return
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.arange(PROBE_TOKENS, device=embeddings.weight.device)[None] % embeddings.num_embeddings  # [1, T]
    other = tokens.clone()
    other[0, -1] = tokens[0, 0]
    logits, changed = (model(ids).logits[0, :-1].float() for ids in (tokens, other))  # [T-1, V]
    if (logits - changed).abs().max() > TOLERANCE * logits.abs().max():
        raise UserError(
            f"'{config.model_type}' is an encoder here: its predictions see the tokens that they predict, so they are "
            "no next-token distributions. Name a causal model, or set is_decoder in its config.json if it is one."
        )
    _causal.add(model)


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
            "together. Name the model's own with --model-args tokenizer=…"
        )
