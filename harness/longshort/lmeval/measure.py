"""Per-document values of every metric, from the per-token values of the document's windows.

A value that cannot be measured is skipped and its reason recorded; no other value takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, combinations_with_replacement
from typing import NamedTuple

from torch import Tensor

from longshort.errors import Kind
from longshort.lmeval.documents import EncodedDocument
from longshort.lmeval.token_values import WindowValues
from longshort.scoring.compare import Comparison
from longshort.scoring.windows import ShorterScores

SINGLE_PASS = "single pass"
PASS_PER_LENGTH = "one pass per length"

PREFIX_METRICS = ("ppl", "bpb")
TAIL_METRICS = ("ppl_tail", "bpb_tail", "accuracy_tail")
MATRIX_METRICS = ("sce_between", "jeffreys_between")
PAIR_METRICS = ("sce", "entropy", "jeffreys", "js", "agreement", "sce_last", "sce_overlap")
FLOOR_METRICS = ("jeffreys_floor", "js_floor")  # of some documents of a model in half precision

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
    """The values of one document, of all tasks that read it."""

    # metric, as `ppl@4096`, to value. Perplexities are mean log-likelihoods (nats per token, not yet exponentiated), as
    # lm-eval's `perplexity` aggregation takes them.
    values: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, Gap] = field(default_factory=dict)  # metric to the reason why it has no value
    passes: str | None = None  # how prefixes were read, if any were
    second_lengths: dict[int, list[int]] = field(default_factory=dict)  # length L to the drawn lengths L - e
    batch_size: int = 1  # documents that were read together; 0 where the backend decides
    windows: list[WindowValues] = field(default_factory=list)  # per-token values, where they are kept

    def __str__(self) -> str:  # what lm-eval logs as the response; the values are logged as metrics
        reasons = {metric: gap.reason for metric, gap in self.gaps.items()}
        return f"passes: {self.passes}, second lengths: {self.second_lengths}, left out: {reasons}"

    def add(self, metric: str, value: float, gap: Gap = NON_FINITE) -> None:
        """Keep a value if it is finite, else record the gap."""
        if math.isfinite(value):
            self.values[metric] = value
        else:
            self.gaps[metric] = gap

    def only(self, metrics: Collection[str]) -> Measured:
        """Return it with the values of some metrics alone, named without their lengths."""
        own = {name for name in (*self.values, *self.gaps) if name.partition("@")[0] in metrics}
        return replace(
            self,
            values={name: value for name, value in self.values.items() if name in own},
            gaps={name: gap for name, gap in self.gaps.items() if name in own},
            passes=self.passes if set(PREFIX_METRICS) <= set(metrics) else None,
        )

    def skip(self, names: Sequence[str], length: int, gap: Gap) -> None:
        """Record that metrics of one length have no value."""
        self.gaps |= {f"{name}@{length}": gap for name in names}


def add_prefixes(
    result: Measured, document: EncodedDocument, nll: Tensor, lengths: Sequence[int], num_special: int
) -> None:
    """Add `ppl@L` and `bpb@L`: the first L tokens, as lm-eval's rolling NLL without windows.

    Args:
        document: whose text follows the special tokens.
        nll: of the tokens after the first one, nats, [at least max(lengths) - 1].
        num_special: special tokens, which are read, never scored, and count towards the lengths.
    """
    first = max(1, num_special)
    for length in lengths:
        num_bytes = document.num_bytes(first - num_special, length - num_special)
        _add_perplexity(result, PREFIX_METRICS, length, nll[first - 1 : length - 1].cpu().double(), num_bytes)


def add_fixed_targets(result: Measured, num_bytes: float, found: Comparison, row: int, lengths: Sequence[int]) -> None:
    """Add what contexts of all lengths say of the fixed targets, mean over these.

    `ppl_tail@L`, `bpb_tail@L`, `accuracy_tail@L`, and the misalignment of any two contexts: `sce_between@L1-L2` and
    `jeffreys_between@L1-L2`. `sce_between@L-L` is twice the entropy.

    Args:
        num_bytes: UTF-8 bytes of the targets' text.
        found: the contexts in the order of `lengths`, and their pairs in that of `combinations`.
        row: of the document in the batch.
        lengths: M context lengths in tokens, ascending.
    """
    for index, length in enumerate(lengths):
        _add_perplexity(result, TAIL_METRICS, length, found.nll[row, index].cpu().double(), num_bytes)
        result.add(f"accuracy_tail@{length}", float(found.is_top[row, index].double().mean()))
    entropy = found.entropy[row].double().mean(-1).tolist()  # [M]
    pairs = combinations(range(len(lengths)), 2)
    jeffreys = dict(zip(pairs, found.jeffreys[row].double().mean(-1).tolist(), strict=True))
    for i, j in combinations_with_replacement(range(len(lengths)), 2):
        between = f"{lengths[i]}-{lengths[j]}"
        result.add(f"sce_between@{between}", entropy[i] + entropy[j] + jeffreys.get((i, j), 0.0))
        if i != j:
            result.add(f"jeffreys_between@{between}", jeffreys[i, j])


def add_pairs(
    result: Measured, length: int, seconds: Sequence[int], entropy: Tensor, shorter: Mapping[int, ShorterScores]
) -> None:
    """Add the misalignment at one length: contexts of `length` and of each of `seconds` tokens, with the same end.

    Which positions are averaged (index j of a shorter context: it has j + 1 tokens there, the longer context
    j + 1 + length - second): `sce_overlap` all that both share; `sce_last` the last one, where the longer context has
    `length` tokens; the others `in_range`, where both contexts lie in [length/2, length]. Values are means over
    `seconds`; with those of `draw_offsets` the expectation of the in-range ones is over all pairs of context lengths.

    Args:
        length: the longer context, in tokens.
        seconds: the shorter contexts, in tokens: the length minus an offset.
        entropy: of the longer context, [K].
        shorter: by context length, one document's scores, [1, K'] each.

    Source: Du et al., ICML 2025, define the last position; the other two choices of positions are ours.
    """
    by_second = {second: _pair(length, second, entropy, scores) for second, scores in shorter.items()}
    result.second_lengths[length] = list(seconds)
    for name in PAIR_METRICS:
        result.add(f"{name}@{length}", sum(by_second[second][name] for second in seconds) / len(seconds))


def add_floor(result: Measured, length: int, seconds: Sequence[int], floors: Mapping[int, Comparison]) -> None:
    """Add `jeffreys_floor@L` and `js_floor@L`: divergences between two forward passes that differ only in rounding.

    Args:
        length: the longer context, in tokens.
        seconds: the shorter contexts, in tokens, as of `add_pairs`.
        floors: by context length, the two forward passes over one document compared at the in-range positions.
    """
    for name, divergence in zip(FLOOR_METRICS, ("jeffreys", "js"), strict=True):
        by_second = {second: float(getattr(found, divergence).double().mean()) for second, found in floors.items()}
        result.add(f"{name}@{length}", sum(by_second[second] for second in seconds) / len(seconds))


def in_range_positions(length: int, second: int) -> int:
    """How many positions of a shorter context have both contexts in [length/2, length]."""
    return second - math.ceil(length / 2) + 1


def _pair(length: int, second: int, entropy: Tensor, scores: ShorterScores) -> dict[str, float]:
    in_range = in_range_positions(length, second)
    num_shared = scores.entropy.shape[1]
    by_position = {
        "entropy": entropy[-num_shared:].cpu().double() + scores.entropy[0].cpu().double(),
        "jeffreys": scores.jeffreys[0].cpu().double(),
        "js": scores.js[0].cpu().double(),
        "agreement": scores.agreement[0].cpu().double(),
    }  # [K'] each
    sce = by_position["sce"] = by_position["entropy"] + by_position["jeffreys"]
    values = {name: float(values[-in_range:].mean()) for name, values in by_position.items()}
    return values | {"sce_last": float(sce[-1]), "sce_overlap": float(sce.mean())}


def between(name: str, lengths: Sequence[int]) -> list[tuple[str, int, int]]:
    """Return a matrix metric's names with their lengths L1 < L2, and L1 = L2 where that is not always 0."""
    pairs = combinations(lengths, 2) if name == "jeffreys_between" else combinations_with_replacement(lengths, 2)
    return [(f"{name}@{first}-{second}", first, second) for first, second in pairs]


def _add_perplexity(result: Measured, names: Sequence[str], length: int, nll: Tensor, num_bytes: float) -> None:
    mean = float(nll.mean())
    gap = OVERFLOW if mean > MAX_NLL else NON_FINITE
    result.add(f"{names[0]}@{length}", -mean if mean <= MAX_NLL else math.nan, gap)
    result.add(f"{names[1]}@{length}", float(nll.sum()) / math.log(2) / num_bytes if num_bytes else math.nan)
