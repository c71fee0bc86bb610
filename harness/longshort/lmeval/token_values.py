"""Per-token values of the windows of a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from longshort.corpora import Document
from longshort.scoring.compare import Comparison
from longshort.scoring.windows import WindowScores
from longshort.settings import EvalSettings

Values = NDArray[np.float32]


@dataclass(frozen=True)
class ShorterContext:
    """The last K' scored tokens of a window, evaluated with a shorter context that has the same end."""

    length: int  # tokens of the shorter context
    entropy: Values  # of its next-token distribution, nats, [K']
    jeffreys: Values  # between both distributions, nats, [K']
    js: Values  # nats, [K']
    agreement: Values  # 1 where both have the same most probable token, else 0, [K']


@dataclass(frozen=True)
class WindowValues:
    """One window of a document: tokens `start` to `start + length` of its special tokens and text.

    K tokens are scored, those with the indices `first` to `first + K`; special tokens never are. A window that starts
    at 0 is also a prefix: `ppl@L` is computed from the tokens before index L of the shortest such window of at least L
    tokens. The token that follows a window, with the index `start + length`, is scored too, unless the window was read
    as a prefix only.
    """

    start: int  # index of the first token that is read
    length: int  # tokens read
    first: int  # index of the first token that is scored
    targets: NDArray[np.int64]  # ids of the scored tokens, [K]
    nll: Values  # nats, [K]
    entropy: Values  # of the next-token distribution, nats, [K]
    is_top: NDArray[np.bool_]  # whether the target is the most probable token, [K]
    shorter: tuple[ShorterContext, ...]  # of the misalignment, one for each draw
    # jeffreys with the windows of all M measured lengths, ascending, at the last scored tokens, which are the fixed
    # targets, [M, num_targets]; None if the fixed targets are not measured.
    between: Values | None


def of_window(
    scores: WindowScores,
    row: int,
    tokens: Tensor,
    window: tuple[int, int],
    first: int,
    *,
    num_special: int,
    seconds: Sequence[int] = (),
) -> WindowValues:
    """Per-token values of one document's window.

    Args:
        scores: of the window, with `everywhere`.
        row: of the document in `scores`.
        tokens: its special tokens and text, [N].
        window: start and length.
        first: index of the token whose values come first in `scores`.
        num_special: number of special tokens; positions whose target is one of them are skipped.
        seconds: lengths of the shorter contexts.
    """
    skipped = max(0, num_special - first)
    nll, entropy, is_top = (
        values[row, skipped:].cpu().numpy() for values in (scores.nll, scores.entropy, scores.is_top)
    )
    shorter = tuple(
        ShorterContext(second, *(getattr(other, each.name)[row].cpu().numpy() for each in fields(other)))
        for second, other in zip(seconds, scores.shorter, strict=True)
    )
    first += skipped
    targets = tokens[first : first + len(nll)].cpu().numpy()
    return WindowValues(*window, first, targets, nll, entropy, is_top > 0, shorter, None)


def with_fixed_targets(
    windows: list[WindowValues], found: Comparison, row: int, tokens: Tensor, lengths: Sequence[int]
) -> list[WindowValues]:
    """Add `between` to the windows that end before the last token; a window that is not among them yet is added.

    Args:
        windows: of one document.
        found: values at the fixed targets; contexts in the order of `lengths`, pairs in that of `combinations`.
        row: of the document in `found`.
        tokens: its special tokens and text, [N].
        lengths: M lengths, ascending.
    """
    end, count = len(tokens) - 1, found.nll.shape[-1]
    between = np.zeros((len(lengths), len(lengths), count), np.float32)  # [M, M, K]
    for (i, j), jeffreys in zip(combinations(range(len(lengths)), 2), found.jeffreys[row].cpu().numpy(), strict=True):
        between[i, j] = between[j, i] = jeffreys
    known = {window.length: window for window in windows if window.start + window.length == end}
    others = [window for window in windows if window.start + window.length != end]
    for index, length in enumerate(lengths):
        if length not in known:
            nll, entropy, is_top = (
                values[row, index].cpu().numpy() for values in (found.nll, found.entropy, found.is_top)
            )
            targets = tokens[-count:].cpu().numpy()
            window = WindowValues(end - length, length, end + 1 - count, targets, nll, entropy, is_top > 0, (), None)
            known[length] = window
        known[length] = replace(known[length], between=between[index])
    return [*others, *known.values()]


def with_all_draws(windows: Sequence[WindowValues], second_lengths: Mapping[int, Sequence[int]]) -> list[WindowValues]:
    """Return the windows with their shorter contexts in the order of the draws; repeated draws share one forward pass.

    Args:
        second_lengths: lengths of the shorter contexts as drawn, by length of the window.
    """
    found = []
    for window in windows:
        by_length = {shorter.length: shorter for shorter in window.shorter}
        drawn = second_lengths.get(window.length, ()) if window.shorter else ()
        found.append(replace(window, shorter=tuple(by_length[length] for length in drawn)))
    return found


@dataclass(frozen=True)
class TaskValues:
    """The per-token values that a task has measured of its documents."""

    task: str
    settings: EvalSettings
    model: Mapping[str, Any]  # its arguments, as far as the task knows them
    corpus: Mapping[str, Any]  # source, revision, split and SHA-256 of the documents
    passes: str | None  # how prefixes were read
    documents: Mapping[int, Document]  # by index, those with a value
    windows: Mapping[int, Sequence[WindowValues]]  # by index of the document, of all tasks that read it
