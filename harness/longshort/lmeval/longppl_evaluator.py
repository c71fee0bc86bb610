"""Finds the key-token spans of documents with an evaluator that lm-eval has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.lmeval.backend import Backend, rows_per_forward
from longshort.lmeval.documents import character_offsets
from longshort.lmeval.longppl_spans import Span, merged
from longshort.lmeval.model_checks import require_embeddings
from longshort.scoring.key_tokens import Criterion, find_key_tokens


@dataclass(frozen=True)
class FoundSpans:
    """The key-token spans of a document, and what was read to find them."""

    spans: tuple[Span, ...]
    reach: int  # characters of the text that were read
    num_tokens: int  # tokens that were read, with the special ones before the text
    num_key_tokens: int


@dataclass(frozen=True)
class _Read:
    tokens: torch.Tensor  # special tokens and text, [N]


def find_spans(
    backend: Backend,
    document: Document,
    num_tokens: int,
    criterion: Criterion,
    report: Callable[[int], object] | None = None,
) -> FoundSpans:
    """Find the key-token spans of the first tokens of a document, with the special tokens of the evaluator before it.

    Args:
        backend: of the evaluator.
        num_tokens: how many tokens of the text are read at most, as far as the evaluator has positions.
        criterion: when a token is a key token.
        report: called with the number of tokens of each forward pass, for a progress bar.

    Raises:
        UserError: logits are not finite ("non_finite"), memory does not suffice ("out_of_memory"), or the tokenizer
            does not fit ("setting", "unsupported").
    """
    special = backend.special_tokens
    most = min([num_tokens, *(limit - len(special) for limit in backend.limits)])
    ids, offsets = character_offsets(backend.lm.tokenizer, document, most)
    tokens = torch.tensor([*special, *ids], dtype=torch.long)
    require_embeddings(backend.model, [_Read(tokens)])
    batch_size = rows_per_forward(backend.lm, criterion.short + criterion.stride)
    found = _within_memory(backend.model, tokens[None], criterion, batch_size, report)
    key_tokens = [index - len(special) for index in found if index >= len(special)]
    # A tokenizer may drop the white space at the end of a text.
    is_whole = len(ids) < most
    reach = len(document.text) if is_whole else int(offsets[-1, 1]) if ids else 0
    spans = merged((int(start), int(end)) for start, end in offsets[key_tokens])
    return FoundSpans(spans, reach, len(tokens), len(key_tokens))


def _within_memory(
    model: nn.Module, tokens: torch.Tensor, criterion: Criterion, batch_size: int, report: Any
) -> list[int]:
    """Find key tokens; if memory runs out, with half as many windows at once."""
    while True:
        try:
            return find_key_tokens(model, tokens, criterion, batch_size=batch_size, report=report)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if batch_size == 1:
                raise UserError(
                    f"out of memory at {tokens.shape[1]} tokens, of which the evaluator reads all at once. Use shorter "
                    "lengths or a smaller dtype, or spread the model over devices: --model-args parallelize=True.",
                    "out_of_memory",
                ) from error
        clear_device_cache()
        batch_size //= 2
