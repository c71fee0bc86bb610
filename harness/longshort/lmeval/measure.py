"""Per-document values of every metric, from a model and encoded documents.

A value that cannot be measured is skipped and its reason recorded; no other value takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longshort.errors import Kind
from longshort.lmeval.documents import EncodedDocument
from longshort.scoring import score_prefix, score_suffixes
from longshort.scoring.positions import depends_on_length

SINGLE_PASS = "single pass"
PASS_PER_LENGTH = "one pass per length"

PREFIX_METRICS = ("ppl", "bpb")
TAIL_METRICS = ("ppl_tail", "bpb_tail")
MATRIX_METRICS = ("sce_between", "jeffreys_between")
PAIR_METRICS = ("sce", "entropy", "jeffreys", "js", "agreement", "sce_last", "sce_overlap")

MAX_NLL = 700.0  # nats per token; exp of more overflows


class Gap(NamedTuple):
    """Why a value is missing: the failure category, and the reason in words."""

    kind: Kind
    reason: str


TOO_SHORT = Gap("text", "document too short")
NON_FINITE = Gap("non_finite", "non-finite logits")
OVERFLOW = Gap("error", "NLL too great for a perplexity")


@dataclass
class Measured:
    """The values of one document."""

    # metric, as `ppl@4096`, to value. Perplexities are mean log-likelihoods (nats per token, not yet exponentiated), as
    # lm-eval's `perplexity` aggregation takes them.
    values: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, Gap] = field(default_factory=dict)  # metric to the reason why it has no value
    passes: str | None = None  # how prefixes were read, if any were
    second_lengths: dict[int, list[int]] = field(default_factory=dict)  # length L to the drawn lengths L - e

    def __str__(self) -> str:  # what lm-eval logs as the response; the values are logged as metrics
        reasons = {metric: gap.reason for metric, gap in self.gaps.items()}
        return f"passes: {self.passes}, second lengths: {self.second_lengths}, left out: {reasons}"

    def add(self, metric: str, value: float, gap: Gap = NON_FINITE) -> None:
        """Keep a value if it is finite, else record the gap."""
        if math.isfinite(value):
            self.values[metric] = value
        else:
            self.gaps[metric] = gap

    def skip(self, names: Sequence[str], length: int, gap: Gap) -> None:
        """Record that metrics of one length have no value."""
        self.gaps |= {f"{name}@{length}": gap for name in names}


def measure_prefixes(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    lengths: Sequence[int],
    special_tokens: list[int],
    passes: str | None,
) -> list[Measured]:
    """Measure `ppl@L` and `bpb@L` of each document: its first L tokens, as lm-eval's rolling NLL without windows.

    Args:
        documents: B documents with equally many tokens, at least `max(lengths)` including the special tokens.
        lengths: ascending.
        special_tokens: ids that the tokenizer puts before a text; they count towards the length.
        passes: SINGLE_PASS, PASS_PER_LENGTH, or None: probe the model on the first document.
    """
    longest = lengths[-1]
    text = torch.stack([document.tokens[: longest - len(special_tokens)] for document in documents])  # [B, longest - S]
    tokens = torch.cat([torch.tensor(special_tokens, dtype=text.dtype).expand(len(text), -1), text], dim=1)
    nll = score_prefix(model, tokens).cpu()  # [B, longest - 1]
    if passes is None:
        dependent = depends_on_length(model, tokens[:1], lengths, nll[:1])
        passes = PASS_PER_LENGTH if dependent else SINGLE_PASS
    results = [Measured(passes=passes) for _ in documents]
    first_target = max(1, len(special_tokens))  # special tokens are read, never scored
    for length in lengths:
        if passes == PASS_PER_LENGTH and length != longest:
            scores = score_prefix(model, tokens[:, :length]).cpu()
        else:
            scores = nll
        targets = scores[:, first_target - 1 : length - 1].double()  # [B, length - first_target]
        for result, document, row in zip(results, documents, targets, strict=True):
            num_bytes = document.num_bytes(first_target - len(special_tokens), length - len(special_tokens))
            _add_perplexity(result, PREFIX_METRICS, length, row, num_bytes)
    return results


def measure_tails(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    lengths: Sequence[int],
    num_tokens: int,
    num_targets: int,
    special_tokens: list[int],
) -> list[Measured]:
    """Measure `ppl_tail@L` and `bpb_tail@L`: the same fixed targets, the last of `num_tokens` tokens, at each L.

    The same passes give the misalignment of any two of these contexts, mean over the targets: `sce_between@L1-L2`
    and, as its excess over both entropies, `jeffreys_between@L1-L2`. `sce_between@L-L` is twice the entropy.

    Args:
        documents: B documents with at least `num_tokens` tokens.
        lengths: context lengths in tokens, ascending.
        num_tokens: one more than the longest context.
        num_targets: number of targets, below the shortest context.
        special_tokens: ids that the tokenizer puts before a text; they count towards the length.
    """
    tokens = torch.stack([document.tokens[:num_tokens] for document in documents])  # [B, num_tokens]
    scores = score_suffixes(model, tokens, lengths, num_targets, special_tokens=special_tokens)
    results = [Measured() for _ in documents]
    for index, length in enumerate(lengths):
        for row, (result, document) in enumerate(zip(results, documents, strict=True)):
            num_bytes = document.num_bytes(num_tokens - num_targets, num_tokens)
            _add_perplexity(result, TAIL_METRICS, length, scores.nll[row, index].cpu().double(), num_bytes)
    cross_entropy = scores.cross_entropy.cpu().double().mean(-1)  # [B, M, M]
    entropy = cross_entropy.diagonal(dim1=1, dim2=2)  # [B, M]
    sce = cross_entropy + cross_entropy.mT
    matrices = (sce, sce - entropy[:, :, None] - entropy[:, None, :])
    for name, matrix in zip(MATRIX_METRICS, matrices, strict=True):
        for metric, first, second in between(name, lengths):
            column = matrix[:, lengths.index(first), lengths.index(second)]  # [B]
            for result, value in zip(results, column.tolist(), strict=True):
                result.add(metric, value)
    return results


def measure_pairs(
    model: nn.Module, tokens: Tensor, length: int, seconds: Sequence[int], special_tokens: list[int]
) -> Measured:
    """Measure the misalignment at one length: contexts of `length` and of each of `seconds` tokens, with the same end.

    Which positions are averaged (index j of a shorter context: it has j + 1 tokens there, the longer context
    j + 1 + length - second): `sce_overlap` all that both share; `sce_last` the last one, where the longer context has
    `length` tokens; the others `in_range`, where both contexts lie in [length/2, length]. Values are means over
    `seconds`; with those of `draw_offsets` the expectation of the in-range ones is over all pairs of context lengths.

    Args:
        tokens: one document, [N]; all contexts end just before its last token.
        length: the longer context, in tokens.
        seconds: the shorter contexts, in tokens: the length minus an offset. One that is repeated is read once.
        special_tokens: ids that the tokenizer puts before a text; they count towards the length.

    Source: Du et al., ICML 2025, define the last position; the other two choices of positions are ours.
    """
    by_second = {second: _pair(model, tokens, length, second, special_tokens) for second in dict.fromkeys(seconds)}
    result = Measured(second_lengths={length: list(seconds)})
    for name in PAIR_METRICS:
        result.add(f"{name}@{length}", sum(by_second[second][name] for second in seconds) / len(seconds))
    return result


def _pair(model: nn.Module, tokens: Tensor, length: int, second: int, special_tokens: list[int]) -> dict[str, float]:
    shared = second - len(special_tokens)  # at earlier positions the two contexts end in different tokens
    in_range = second - math.ceil(length / 2) + 1
    scores = score_suffixes(
        model, tokens[None], [length, second], shared, special_tokens=special_tokens, pairs=[(0, 1)]
    )
    sce = (scores.cross_entropy[0, 0, 1] + scores.cross_entropy[0, 1, 0]).cpu().double()  # [K]
    by_position = {
        "sce": sce,
        "entropy": scores.entropy[0].sum(0).cpu().double(),
        "jeffreys": scores.jeffreys[0, 0].cpu().double(),
        "js": scores.js[0, 0].cpu().double(),
        "agreement": scores.agreement[0, 0].cpu().double(),
    }
    values = {name: float(values[-in_range:].mean()) for name, values in by_position.items()}
    return values | {"sce_last": float(sce[-1]), "sce_overlap": float(sce.mean())}


def between(name: str, lengths: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return a matrix metric's names with their lengths L1 < L2, and L1 = L2 where that is not always 0."""
    pairs = combinations(lengths, 2) if name == "jeffreys_between" else combinations_with_replacement(lengths, 2)
    return [(f"{name}@{first}-{second}", first, second) for first, second in pairs]


def merge(parts: Sequence[Measured]) -> Measured:
    """Combine several measurements of one document."""
    whole: dict[str, Any] = {"values": {}, "gaps": {}, "second_lengths": {}}
    for part in parts:
        for name, entries in whole.items():
            entries |= getattr(part, name)
    return Measured(**whole, passes=next((part.passes for part in parts if part.passes), None))


def _add_perplexity(result: Measured, names: tuple[str, str], length: int, nll: Tensor, num_bytes: float) -> None:
    mean = float(nll.mean())
    gap = OVERFLOW if mean > MAX_NLL else NON_FINITE
    result.add(f"{names[0]}@{length}", -mean if mean <= MAX_NLL else math.nan, gap)
    result.add(f"{names[1]}@{length}", float(nll.sum()) / math.log(2) / num_bytes if num_bytes else math.nan)
