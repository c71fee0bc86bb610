"""Evaluates the windows of documents, each distinct window once, for all tasks that need it.

A document is its special tokens and its text, cut to one token more than the longest length. All windows end just
before its last token. The window of length L is the context of the fixed targets at L, and the longer context of the
misalignment at L. If it also starts at the first token, it is the prefix from which all `ppl@L` are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor, nn

from longshort.lmeval import measure
from longshort.lmeval.documents import EncodedDocument
from longshort.lmeval.measure import PASS_PER_LENGTH, SINGLE_PASS, Gap, Measured
from longshort.lmeval.token_values import of_window, with_fixed_targets
from longshort.scoring.compare import compare_contexts
from longshort.scoring.floor import floor_problem, has_floor
from longshort.scoring.forward import evaluating, input_device
from longshort.scoring.lm_head import LMHead, lm_head_of
from longshort.scoring.positions import depends_on_length
from longshort.scoring.windows import WindowScores, read_window, score_window
from longshort.settings import EvalSettings


@dataclass(frozen=True)
class Wanted:
    """What to measure of documents of equal length."""

    settings: EvalSettings
    usable: Sequence[int]  # lengths that the model can address, ascending
    perplexity: bool = True  # of prefixes and of fixed targets
    # For each document, by length, the lengths of the shorter contexts of the misalignment: the length minus an offset.
    # A repeated one needs one forward pass. None if the misalignment is not wanted.
    seconds: Sequence[Mapping[int, list[int]]] | None = None
    floors: Sequence[bool] = ()  # for each document, whether to measure the numerical floor; empty: for none
    passes: str | None = None  # SINGLE_PASS, PASS_PER_LENGTH, or None: probe the model on the first document


@dataclass
class _Batch:
    """Documents of equal length that share forward passes, and their results so far."""

    model: nn.Module
    lm_head: LMHead
    wanted: Wanted
    documents: Sequence[EncodedDocument]
    tokens: Tensor  # special tokens and text, [B, N]
    special_tokens: list[int]
    results: list[Measured]
    floor_gaps: dict[int, Gap | None] = field(default_factory=dict)  # by length; empty if no floor is wanted
    fixed: dict[int, Tensor] = field(default_factory=dict)  # hidden states at the fixed targets by length, [B, K, H]

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.tokens.shape[1]

    @property
    def num_targets(self) -> int:
        """Fixed targets, which follow the longest length; 0 if they are not wanted, or documents are shorter."""
        is_full = self.num_tokens > self.wanted.settings.lengths[-1]
        return self.wanted.settings.num_targets if self.wanted.perplexity and is_full else 0

    @property
    def windows(self) -> list[int]:
        """Lengths of windows that end before the last token, ascending."""
        return [length for length in self.wanted.usable if length < self.num_tokens]

    @property
    def prefixes(self) -> list[int]:
        """Lengths of the prefixes that are wanted, ascending."""
        return [length for length in self.wanted.usable if self.wanted.perplexity and length <= self.num_tokens]

    @property
    def prefix_is_window(self) -> bool:
        """Whether the longest prefix is one of the windows that are read."""
        return self.num_tokens - 1 in self.prefixes[-1:] and (self.wanted.seconds is not None or self.num_targets > 0)


def measure_documents(
    model: nn.Module, documents: Sequence[EncodedDocument], special_tokens: list[int], wanted: Wanted
) -> list[Measured]:
    """Measure documents of equal length, in as few forward passes as their distinct windows need.

    Args:
        model: a causal LM.
        documents: B documents with equally many tokens.
        special_tokens: ids that the tokenizer puts before a text; they count towards every length.
        wanted: what to measure.
    """
    text = torch.stack([document.tokens for document in documents])  # [B, T]
    special = torch.tensor(special_tokens, dtype=text.dtype).expand(len(text), -1)
    tokens = torch.cat([special, text], dim=1)[:, : wanted.settings.lengths[-1] + 1].to(input_device(model))
    results = [Measured(batch_size=len(documents)) for _ in documents]
    batch = _Batch(model, lm_head_of(model), wanted, documents, tokens, special_tokens, results)
    if any(wanted.floors) and has_floor(batch.lm_head):  # probed while there is memory
        for length in reversed(wanted.usable):
            problem = floor_problem(batch.lm_head, length)
            batch.floor_gaps[length] = Gap("unsupported", problem) if problem else None
    _record_too_short(batch)
    with torch.no_grad(), evaluating(model):
        if batch.prefixes and not batch.prefix_is_window:
            _add_prefixes(batch, _read_prefix(batch, batch.prefixes[-1]))
        if wanted.seconds is not None or batch.num_targets:
            for length in reversed(batch.windows):
                _read_and_score(batch, length)
        if batch.fixed:
            _add_fixed_targets(batch)
    return results


def _record_too_short(batch: _Batch) -> None:
    wanted = batch.wanted
    for length in wanted.usable:
        names: tuple[str, ...] = ()
        if wanted.perplexity and length not in batch.prefixes:
            names += measure.PREFIX_METRICS
        if wanted.perplexity and not batch.num_targets:
            names += measure.TAIL_METRICS
        if wanted.seconds is not None and length not in batch.windows:
            names += measure.PAIR_METRICS
        for result in batch.results:
            result.skip(names, length, measure.TOO_SHORT)
        if batch.floor_gaps and length not in batch.windows:
            for result in itertools.compress(batch.results, wanted.floors):
                result.skip(measure.FLOOR_METRICS, length, measure.TOO_SHORT)


def _read_and_score(batch: _Batch, length: int) -> None:
    """Evaluate the window of one length and its shorter contexts, and add all that is wanted of them."""
    wanted, num_targets, num_special = batch.wanted, batch.num_targets, len(batch.special_tokens)
    is_prefix = batch.prefix_is_window and length == batch.num_tokens - 1
    seconds = [list(dict.fromkeys(of_document[length])) for of_document in wanted.seconds or ()]
    # At earlier positions the two contexts end in different tokens.
    shared = [max(of_document) - num_special for of_document in seconds]
    keep = length if is_prefix else max([num_targets, *shared])
    states = read_window(batch.lm_head, batch.tokens, length, batch.special_tokens, keep)  # [B, keep, H]
    if num_targets:
        batch.fixed[length] = states[:, -num_targets:].clone() if num_targets < keep else states
    nll = []
    for row, of_document in enumerate(seconds):
        document = slice(row, row + 1)
        needed = keep if is_prefix or wanted.settings.save_tokens else shared[row]
        shorter = {second: _read_shorter(batch, document, second) for second in of_document}
        scores = _score(batch, document, length, states[document, -needed:], shorter)
        pairs = dict(zip(of_document, scores.shorter, strict=True))
        measure.add_pairs(batch.results[row], length, (wanted.seconds or ())[row][length], scores.entropy[0], pairs)
        nll.append(scores.nll)
        if batch.floor_gaps and wanted.floors[row]:
            _add_floor(batch, row, length, shorter)
    if is_prefix:
        whole = torch.cat(nll) if seconds else _score(batch, slice(None), length, states, {}).nll  # [B, length]
        _add_prefixes(batch, whole[:, :-1])


def _add_floor(batch: _Batch, row: int, length: int, shorter: Mapping[int, Tensor]) -> None:
    """Evaluate the shorter contexts of one document again, with the position ids of the longer one."""
    gap, seconds = batch.floor_gaps[length], (batch.wanted.seconds or ())[row][length]
    if gap is not None:
        batch.results[row].skip(measure.FLOOR_METRICS, length, gap)
        return
    document = batch.tokens[row : row + 1]
    floors = {}
    for second, states in shorter.items():
        states = states[:, -measure.in_range_positions(length, second) :]  # [1, K, H]
        keep = states.shape[1]
        again = read_window(batch.lm_head, document, second, batch.special_tokens, keep, shift=length - second)
        floors[second] = compare_contexts(batch.lm_head, [states, again], document[:, -keep:], [(0, 1)])
    measure.add_floor(batch.results[row], length, seconds, floors)


def _read_shorter(batch: _Batch, document: slice, second: int) -> Tensor:
    """Hidden states of a shorter context where it shares its tokens with the longer one, [B, K', H]."""
    keep = second - len(batch.special_tokens)
    return read_window(batch.lm_head, batch.tokens[document], second, batch.special_tokens, keep)


def _score(batch: _Batch, documents: slice, length: int, states: Tensor, shorter: Mapping[int, Tensor]) -> WindowScores:
    """Score the last positions of the window of one length, and keep its per-token values if these are wanted."""
    targets = batch.tokens[documents, -states.shape[1] :]  # [B, K]
    save = batch.wanted.settings.save_tokens
    scores = score_window(batch.lm_head, states, targets, list(shorter.values()), everywhere=save)
    if save:
        window = batch.num_tokens - 1 - length, length
        _keep_tokens(batch, documents, scores, window, batch.num_tokens - targets.shape[1], list(shorter))
    return scores


def _read_prefix(batch: _Batch, length: int) -> Tensor:
    """Negative log-likelihood of the first tokens, read on their own, [B, length - 1]."""
    states = batch.lm_head.hidden_states(batch.tokens[:, :length], keep=length)[:, :-1]  # [B, length - 1, H]
    save = batch.wanted.settings.save_tokens
    scores = score_window(batch.lm_head, states, batch.tokens[:, 1:length], everywhere=save)
    if save:
        _keep_tokens(batch, slice(None), scores, (0, length), 1, [])
    return scores.nll


def _add_prefixes(batch: _Batch, nll: Tensor) -> None:
    """Add the perplexities of prefixes; `nll` is that of the longest one, [B, longest - 1]."""
    lengths = batch.prefixes
    passes = batch.wanted.passes
    if passes is None:
        dependent = depends_on_length(batch.model, batch.tokens[:1], lengths, nll[:1])
        passes = PASS_PER_LENGTH if dependent else SINGLE_PASS
    by_length = dict.fromkeys(lengths, nll)
    if passes == PASS_PER_LENGTH:
        by_length |= {length: _read_prefix(batch, length) for length in reversed(lengths[:-1])}
    for row, (result, document) in enumerate(zip(batch.results, batch.documents, strict=True)):
        result.passes = passes
        for length, scores in by_length.items():
            measure.add_prefixes(result, document, scores[row], [length], len(batch.special_tokens))


def _add_fixed_targets(batch: _Batch) -> None:
    """Add the metrics of the fixed targets with contexts of all lengths, and the divergences between these contexts."""
    lengths = sorted(batch.fixed)
    contexts = [batch.fixed.pop(length) for length in lengths]
    pairs = list(combinations(range(len(lengths)), 2))
    targets = batch.tokens[:, -batch.num_targets :]  # [B, K]
    found = compare_contexts(batch.lm_head, contexts, targets, pairs, js=False)
    stop = batch.num_tokens - len(batch.special_tokens)
    for row, (result, document) in enumerate(zip(batch.results, batch.documents, strict=True)):
        num_bytes = document.num_bytes(stop - batch.num_targets, stop)
        measure.add_fixed_targets(result, num_bytes, found, row, lengths)
        if batch.wanted.settings.save_tokens:
            result.windows = with_fixed_targets(result.windows, found, row, batch.tokens[row], lengths)


def _keep_tokens(
    batch: _Batch, documents: slice, scores: WindowScores, window: tuple[int, int], first: int, seconds: list[int]
) -> None:
    num_special = len(batch.special_tokens)
    of_documents = zip(batch.results[documents], batch.tokens[documents], strict=True)
    for row, (result, tokens) in enumerate(of_documents):
        result.windows.append(of_window(scores, row, tokens, window, first, num_special=num_special, seconds=seconds))
