"""What a model in training does on held-out text: perplexity by length, and the terms of its misalignment.

The definitions are those of the lm-eval tasks ``longshort_perplexity`` and ``longshort_misalignment``; few
documents make these quick, but not a substitute for them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from longshort.corpora import Corpus, select
from longshort.errors import UserError
from longshort.scoring import score_prefix, score_suffixes
from longshort.scoring.offsets import draw_offsets
from longshort.scoring.positions import addressable_length, depends_on_length
from longshort.training.config import TERMS
from longshort.training.regularizer import shared_positions
from longshort.training.windows import tokens_of

logger = logging.getLogger(__name__)


def held_out(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    num_docs: int,
    length: int,
    bos: int | None,
    num_embeddings: int | None = None,
) -> Tensor:
    """Return the first `length` tokens of up to `num_docs` documents, BOS first where there is one.  [D, length].

    Raises:
        UserError: no document has so many, or a token is beyond the embeddings of the model.
    """
    rows, longest = [], 0
    for document in select(corpus, num_docs, length):
        ids = [] if bos is None else [bos]
        for part in tokens_of(document.text, tokenizer, num_embeddings=num_embeddings):
            ids += part.tolist()
            if len(ids) >= length:
                break
        longest = max(longest, len(ids))
        if len(ids) >= length:
            rows.append(ids[:length])
    if not rows:
        raise UserError(
            f"Evaluation corpus '{corpus.spec}' ({corpus.source}): no document has {length} tokens; the longest "
            f"has {longest}. Shorten --eval-lengths, or give an --eval-corpus of longer documents.",
            "text",
            "eval_lengths",
        )
    return torch.tensor(rows)


def reachable(model: nn.Module, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the lengths that the model has positions for; the others are skipped with a warning.

    Raises:
        UserError: there is none.
    """
    reach = addressable_length(model)
    within = tuple(length for length in lengths if reach is None or length <= reach)
    if not within:
        raise UserError(
            f"eval_lengths are all beyond the {reach} positions of the model. Shorten --eval-lengths.",
            "length",
            "eval_lengths",
        )
    if beyond := [length for length in lengths if length not in within]:
        logger.warning(
            "eval_lengths: skipped %s, beyond the %s positions of the model.", ", ".join(map(str, beyond)), reach
        )
    return within


@torch.no_grad()
def evaluate(
    model: nn.Module,
    tokens: Tensor,
    lengths: Sequence[int],
    train_length: int,
    special: int,
    seed: int,
) -> dict[str, float]:
    """Measure ``ppl@L`` at each length, and ``sce``, ``entropy`` and ``jeffreys`` at the training context length, in
    nats.

    Perplexity is over all tokens of all documents. Misalignment compares contexts of `train_length` and
    `train_length` - e tokens, with an e of `draw_offsets` per document, at the positions where both hold at least
    half of it; means are over documents.

    Args:
        model: any causal LM; put into evaluation mode meanwhile.
        tokens: [D, N], N ≥ max(lengths) and > train_length; a BOS first where `special` is 1.
        lengths: in tokens, such as `reachable` leaves.
        train_length: T.
        special: tokens at the start that are read, never scored.
        seed: of e.
    """
    lengths = sorted(lengths)
    nll: dict[int, list[Tensor]] = {length: [] for length in lengths}
    terms: list[list[float]] = []
    single_pass: bool | None = None
    for index, document in enumerate(tokens):
        whole = score_prefix(model, document[None, : lengths[-1]])  # [1, N-1]
        if single_pass is None:
            single_pass = not depends_on_length(model, document[None], lengths, whole)
        for length in lengths:
            scores = whole if single_pass else score_prefix(model, document[None, :length])
            nll[length].append(scores[0, max(special - 1, 0) : length - 1])
        [extra] = draw_offsets(seed, index, train_length)
        terms.append(_misalignment(model, document[: train_length + 1], extra, document[:special].tolist()))
    values = {f"ppl@{length}": torch.cat(parts).double().mean().exp().item() for length, parts in nll.items()}
    return values | dict(zip(TERMS, np.mean(terms, axis=0).tolist(), strict=True))


def _misalignment(model: nn.Module, tokens: Tensor, extra: int, prefix: Sequence[int]) -> list[float]:
    """`TERMS` of one document of T + 1 tokens, whose last is only a target."""
    length = len(tokens) - 1
    count = len(shared_positions(length, extra, "in_range"))
    lengths = [length, length - extra]
    scores = score_suffixes(model, tokens[None], lengths, count, special_tokens=prefix, pairs=[(0, 1)])
    cross = scores.cross_entropy[0]  # [2, 2, K]
    by_position = (cross[0, 1] + cross[1, 0], scores.entropy[0].sum(0), scores.jeffreys[0, 0])  # [K] each
    return [values.double().mean().item() for values in by_position]
