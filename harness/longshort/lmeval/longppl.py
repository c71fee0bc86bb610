"""The request type of `longshort_longppl`: the likelihoods of a document's key tokens, at every length.

Key tokens are those of the evaluated model that lie wholly inside the key-token spans of an evaluator. The evaluated
model reads a document without special tokens, as in LongPPL.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from longshort.corpora import Document
from longshort.lmeval.backend import Backend, backend_of, batches, known_passes, remember_passes, within_memory
from longshort.lmeval.documents import character_offsets
from longshort.lmeval.gaps import warn_of_gaps
from longshort.lmeval.longppl_evaluator import find_spans
from longshort.lmeval.longppl_spans import SELF, DocumentSpans, tokens_inside
from longshort.lmeval.measure import (
    MAX_NLL,
    NON_FINITE,
    OVERFLOW,
    PASS_PER_LENGTH,
    SINGLE_PASS,
    TOO_SHORT,
    Gap,
    Measured,
)
from longshort.lmeval.model_checks import require_embeddings
from longshort.lmeval.parallel import share
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.key_tokens import Criterion, nll_at
from longshort.scoring.lm_head import LMHead, lm_head_of
from longshort.scoring.positions import depends_on_length
from longshort.scoring.prefix import nll_of_states
from longshort.settings import LONGPPL, EvalSettings

__all__ = ["LONGPPL", "METRICS", "KeyTokenJob", "answer"]  # LONGPPL is the name of the task and of its request type

METRICS = ("longppl", "key_tokens")

NO_SPANS = Gap("data", "the key spans do not have this document")
BEYOND_REACH = Gap("data", "the evaluator of the key spans has not read that far; give it greater lengths")
NO_KEY_TOKENS = Gap("text", "no key tokens")
NONE_INSIDE = Gap("data", "there are key spans, but no token lies wholly inside one; they may be of another text")


@dataclass(frozen=True)
class KeyTokenJob:
    """One document to score. lm-eval logs `str` of it with the samples, so that leaves out the text."""

    document: Document
    index: int
    settings: EvalSettings
    spans: DocumentSpans | None  # None: the file does not have them, or the model shall find them

    def __str__(self) -> str:
        return f"{self.document.name} at lengths {list(self.settings.lengths)}"


@dataclass(frozen=True)
class _Text:
    """A document as the evaluated model reads it."""

    tokens: Tensor  # [N]
    ends: NDArray[np.int64]  # characters up to the end of each token, [N]
    key_tokens: list[int]  # indices into `tokens`, ascending
    spans: DocumentSpans | None


_Item = tuple[KeyTokenJob, _Text]


def answer(lm: Any, requests: list[Instance]) -> list[Measured]:
    """Score every request's key tokens.

    In data parallel each process scores a share of the documents and gets all answers.

    Raises:
        UserError: the backend, the model or its tokenizer cannot be used ("unsupported").
    """
    jobs: list[KeyTokenJob] = [request.arguments[1] for request in requests]
    backend = backend_of(lm, LONGPPL)
    mine = list(range(lm.rank, len(jobs), lm.world_size))
    task = "finding key tokens" if any(job.settings.key_spans == SELF for job in jobs) else "tokenizing"
    texts = {
        index: _read(backend, jobs[index])
        for index in tqdm(mine, desc=task, unit="document", disable=lm.rank != 0, leave=False)
    }
    require_embeddings(backend.model, texts.values())
    by_shape: dict[tuple[int, EvalSettings], list[int]] = defaultdict(list)
    for index in mine:
        by_shape[len(texts[index].tokens), jobs[index].settings].append(index)
    answers: dict[int, Measured] = {}
    total = sum(len(text.tokens) for text in texts.values())
    with tqdm(total=total, desc="scoring key tokens", unit="token", unit_scale=True, disable=lm.rank != 0) as progress:
        for (num_tokens, _), indices in sorted(by_shape.items(), key=lambda item: -item[0][0]):
            for batch in batches(lm, indices, max(1, num_tokens)):
                items = [(jobs[index], texts[index]) for index in batch]
                answers |= zip(batch, within_memory(partial(_measure, backend), items, num_tokens), strict=True)
                progress.update(num_tokens * len(batch))
    answers = share(lm, answers)
    measured = [answers[index] for index in range(len(jobs))]
    if lm.rank == 0:
        warn_of_gaps(LONGPPL, list(zip(jobs, measured, strict=True)))
    return measured


def _read(backend: Backend, job: KeyTokenJob) -> _Text:
    """Tokenize a document as far as it is scored, and find its key tokens."""
    longest, spans = job.settings.lengths[-1], job.spans
    ids, offsets = character_offsets(backend.lm.tokenizer, job.document, longest)
    if job.settings.key_spans == SELF:
        found = find_spans(backend, job.document, longest, Criterion())
        spans = DocumentSpans(found.spans, found.reach)
    key_tokens = tokens_inside(offsets, spans.spans) if spans else []
    ends = np.maximum.accumulate(offsets[:, 1])
    return _Text(torch.tensor(ids, dtype=torch.long), ends, key_tokens, spans)


def _measure(backend: Backend, items: Sequence[_Item]) -> list[Measured]:
    """Score documents of equal length, with equal settings."""
    settings, num_tokens = items[0][0].settings, len(items[0][1].tokens)
    results = [Measured(batch_size=len(items)) for _ in items]
    for (_, text), result in zip(items, results, strict=True):
        usable = backend.usable(settings.lengths, result, METRICS)
        for length in usable:
            gap = _gap(text, length)
            if gap:
                result.skip(METRICS, length, gap)
    wanted = [
        [length for length in settings.lengths if f"key_tokens@{length}" not in result.gaps] for result in results
    ]
    rows = [row for row, lengths in enumerate(wanted) if lengths and bisect_left(items[row][1].key_tokens, lengths[-1])]
    prefixes = sorted({length for row in rows for length in wanted[row]})
    tokens = torch.stack([items[row][1].tokens for row in rows]) if rows else torch.empty(0, num_tokens)
    scores, passes = _score(backend, tokens, prefixes, [items[row][1].key_tokens for row in rows])
    for row, (result, (_, text)) in enumerate(zip(results, items, strict=True)):
        result.passes = passes if row in rows else None
        for length in wanted[row]:
            _add(result, text, length, scores[length][rows.index(row)] if row in rows else torch.empty(0))
    return results


def _gap(text: _Text, length: int) -> Gap | None:
    """Why neither key tokens nor their number are known at this length."""
    if len(text.tokens) < length:
        return TOO_SHORT
    if text.spans is None:
        return NO_SPANS
    return BEYOND_REACH if text.ends[length - 1] > text.spans.reach else None


def _add(result: Measured, text: _Text, length: int, nll: Tensor) -> None:
    """Add the values of one document at one length.

    Args:
        nll: of the key tokens among the first `length` tokens, [n].
    """
    result.add(f"key_tokens@{length}", len(nll))
    if not len(nll):
        has_spans = text.spans is not None and any(end <= text.ends[length - 1] for _, end in text.spans.spans)
        result.gaps[f"longppl@{length}"] = NONE_INSIDE if has_spans else NO_KEY_TOKENS
        return
    mean = float(nll.double().mean())
    is_too_great = MAX_NLL < mean < float("inf")
    result.add(f"longppl@{length}", float("nan") if is_too_great else -mean, OVERFLOW if is_too_great else NON_FINITE)


@torch.no_grad()
def _score(
    backend: Backend, tokens: Tensor, lengths: Sequence[int], key_tokens: Sequence[list[int]]
) -> tuple[dict[int, list[Tensor]], str | None]:
    """Return the NLL of the key tokens of prefixes, by length for each document, and how the prefixes were read.

    Args:
        tokens: token ids, [B, N]; B may be 0.
        lengths: of the prefixes in tokens, ascending, at most N.
        key_tokens: indices into N for each document, ascending.
    """
    if not lengths:
        return {}, None
    model, lm_head = backend.model, lm_head_of(backend.model)
    tokens = tokens.to(input_device(model))
    passes = known_passes(model, lengths)
    with evaluating(model):
        states = _states(lm_head, tokens, lengths[-1])
        if passes is None:
            nll = nll_of_states(lm_head, states[:1], tokens[:1, 1 : lengths[-1]])  # [1, max(lengths) - 1]
            passes = PASS_PER_LENGTH if depends_on_length(model, tokens[:1], lengths, nll) else SINGLE_PASS
            remember_passes(model, passes, lengths)
        scores = {lengths[-1]: _nll(lm_head, states, tokens, key_tokens, lengths[-1])}
        for length in reversed(lengths[:-1]):
            if passes == PASS_PER_LENGTH:
                scores[length] = _nll(lm_head, _states(lm_head, tokens, length), tokens, key_tokens, length)
            else:
                counts = [bisect_left(of_row, length) for of_row in key_tokens]
                scores[length] = [nll[:count] for nll, count in zip(scores[lengths[-1]], counts, strict=True)]
    return scores, passes


def _states(lm_head: LMHead, tokens: Tensor, length: int) -> Tensor:
    """Hidden states that predict the tokens of a prefix after its first one, [B, length - 1, H]."""
    return lm_head.hidden_states(tokens[:, :length], keep=length)[:, :-1]


def _nll(lm_head: LMHead, states: Tensor, tokens: Tensor, key_tokens: Sequence[list[int]], length: int) -> list[Tensor]:
    """Negative log-likelihood of each document's key tokens in a prefix, [n] each."""
    positions = [torch.tensor(of_row[: bisect_left(of_row, length)], dtype=torch.long) - 1 for of_row in key_tokens]
    return [nll.cpu() for nll in nll_at(lm_head, states, tokens[:, 1:length], positions)]
