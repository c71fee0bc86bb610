"""Per-document values of every metric, from a model and encoded documents.

A value that cannot be measured is left out with the reason why; nothing stands in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, combinations_with_replacement
from typing import Any

import torch
from torch import Tensor, nn

from longshort.lmeval.documents import EncodedDocument
from longshort.scoring import score_prefix, score_suffixes
from longshort.scoring.positions import depends_on_length

SINGLE_PASS = "single pass"
PASS_PER_LENGTH = "one pass per length"

PREFIX_METRICS = ("ppl", "bpb")
TAIL_METRICS = ("ppl_tail", "bpb_tail")
MATRIX_METRICS = ("sce_between", "jeffreys_between")
PAIR_METRICS = ("sce", "entropy", "jeffreys", "js", "agreement", "sce_last", "sce_overlap")

TOO_SHORT = "document too short"
NON_FINITE = "non-finite logits"
OVERFLOW = "NLL too great for a perplexity"
MAX_NLL = 700.0  # nats per token; exp of more overflows


@dataclass
class Measured:
    """What one document gave.

    Attributes:
        values: metric, as `ppl@4096`, to value. Perplexities are mean log-likelihoods (nats per token, not yet
            exponentiated), as lm-eval's `perplexity` aggregation takes them.
        left_out: metric to the reason why it has no value.
        passes: how prefixes were read, where they were.
        second_lengths: length L to the drawn l2 = L - e.
    """

    values: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    passes: str | None = None
    second_lengths: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:  # what lm-eval logs as the response; the values are logged as metrics
        return f"passes: {self.passes}, second lengths: {self.second_lengths}, left out: {self.left_out}"

    def add(self, metric: str, value: float, unless: str = NON_FINITE) -> None:
        """Keep a value if it is one."""
        if math.isfinite(value):
            self.values[metric] = value
        else:
            self.left_out[metric] = unless

    def leave_out(self, names: Sequence[str], length: int, reason: str) -> None:
        """Name metrics of one length that have no value."""
        self.left_out |= {f"{name}@{length}": reason for name in names}


def measure_prefixes(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    lengths: Sequence[int],
    prefix: list[int],
    passes: str | None,
) -> list[Measured]:
    """`ppl@L` and `bpb@L`: the first L tokens of each document (method of lm-eval's rolling NLL, without windows).

    Args:
        model: any `AutoModelForCausalLM`.
        documents: B of them with equally many tokens, all with at least `max(lengths)` counting the prefix.
        lengths: ascending.
        prefix: the tokenizer's special tokens before a text; they count towards the length.
        passes: SINGLE_PASS, PASS_PER_LENGTH, or None: probe the model on the first document.
    """
    longest = lengths[-1]
    text = torch.stack([document.tokens[: longest - len(prefix)] for document in documents])  # [B, longest - P]
    tokens = torch.cat([torch.tensor(prefix, dtype=text.dtype).expand(len(text), -1), text], dim=1)
    nll = score_prefix(model, tokens).cpu()  # [B, longest - 1]
    if passes is None:
        dependent = depends_on_length(model, tokens[:1], lengths, nll[:1])
        passes = PASS_PER_LENGTH if dependent else SINGLE_PASS
    results = [Measured(passes=passes) for _ in documents]
    first_target = max(1, len(prefix))  # special tokens are read, never scored
    for length in lengths:
        if passes == PASS_PER_LENGTH and length != longest:
            scores = score_prefix(model, tokens[:, :length]).cpu()
        else:
            scores = nll
        targets = scores[:, first_target - 1 : length - 1].double()  # [B, length - first_target]
        for result, document, row in zip(results, documents, targets, strict=True):
            num_bytes = document.num_bytes(first_target - len(prefix), length - len(prefix))
            _add_perplexity(result, PREFIX_METRICS, length, row, num_bytes)
    return results


def measure_tails(
    model: nn.Module,
    documents: Sequence[EncodedDocument],
    lengths: Sequence[int],
    num_tokens: int,
    num_targets: int,
    prefix: list[int],
) -> list[Measured]:
    """`ppl_tail@L` and `bpb_tail@L`: the same last targets of `num_tokens` tokens, read with contexts of each L.

    From the same passes the misalignment of any two of these contexts, mean over the targets: `sce_between@L1-L2`
    and, as its excess over both entropies, `jeffreys_between@L1-L2`. `sce_between@L-L` is twice the entropy.
    """
    tokens = torch.stack([document.tokens[:num_tokens] for document in documents])  # [B, num_tokens]
    scores = score_suffixes(model, tokens, lengths, num_targets, special_tokens=prefix)
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


def measure_pair(model: nn.Module, tokens: Tensor, length: int, second: int, prefix: list[int]) -> Measured:
    """The misalignment metrics at one length: contexts of `length` and `second` tokens with one end.

    Positions (index j of the shorter context, its context j + 1, the longer one's j + 1 + length - second):
    `sce_overlap` all that both share, `sce_last` the end alone, the others `in_range`: both contexts in
    [length/2, length] (Du et al., ICML 2025, define the end; the other two readings are ours).

    Args:
        tokens: one document, [N]; both contexts end just before its last token.
    """
    shared = second - len(prefix)  # before it the two contexts end in different tokens
    in_range = second - math.ceil(length / 2) + 1
    scores = score_suffixes(model, tokens[None], [length, second], shared, special_tokens=prefix, pairs=[(0, 1)])
    sce = (scores.cross_entropy[0, 0, 1] + scores.cross_entropy[0, 1, 0]).cpu().double()  # [K]
    by_position = {
        "sce": sce,
        "entropy": scores.entropy[0].sum(0).cpu().double(),
        "jeffreys": scores.jeffreys[0, 0].cpu().double(),
        "js": scores.js[0, 0].cpu().double(),
        "agreement": scores.agreement[0, 0].cpu().double(),
    }
    result = Measured(second_lengths={length: second})
    for name, values in by_position.items():
        result.add(f"{name}@{length}", float(values[-in_range:].mean()))
    result.add(f"sce_last@{length}", float(sce[-1]))
    result.add(f"sce_overlap@{length}", float(sce.mean()))
    return result


def between(name: str, lengths: Sequence[int]) -> list[tuple[str, int, int]]:
    """A matrix metric's names with their two lengths: L1 < L2, and L1 = L2 too where that is not always 0."""
    pairs = combinations(lengths, 2) if name == "jeffreys_between" else combinations_with_replacement(lengths, 2)
    return [(f"{name}@{first}-{second}", first, second) for first, second in pairs]


def merge(parts: Sequence[Measured]) -> Measured:
    """All that several measurements of one document gave."""
    whole: dict[str, Any] = {"values": {}, "left_out": {}, "second_lengths": {}}
    for part in parts:
        for name, entries in whole.items():
            entries |= getattr(part, name)
    return Measured(**whole, passes=next((part.passes for part in parts if part.passes), None))


def _add_perplexity(result: Measured, names: tuple[str, str], length: int, nll: Tensor, num_bytes: float) -> None:
    mean = float(nll.mean())
    result.add(
        f"{names[0]}@{length}",
        -mean if mean <= MAX_NLL else math.nan,
        OVERFLOW if mean > MAX_NLL else NON_FINITE,
    )
    result.add(f"{names[1]}@{length}", float(nll.sum()) / math.log(2) / num_bytes if num_bytes else math.nan)
