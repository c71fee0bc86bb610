"""Per-token values of the windows of a document."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


@dataclass(frozen=True)
class ShorterContext:
    """The last K' scored tokens of a window, once more with a shorter context that has the same end."""

    length: int  # tokens of the shorter context
    entropy: Values  # of its next-token distribution, nats, [K']
    jeffreys: Values  # between both distributions, nats, [K']
    js: Values  # nats, [K']
    agreement: Values  # 1 where both have the same most probable token, else 0, [K']


@dataclass(frozen=True)
class WindowValues:
    """One window of a document: tokens `start` to `start + length` of its special tokens and text.

    The K tokens that are scored are the last ones up to the token that follows the window, whose index is
    `start + length`. A window that starts at 0 is also a prefix; the last token of it belongs to no perplexity of
    prefixes.
    """

    start: int  # index of the first token that is read
    length: int  # tokens read
    targets: NDArray[np.int64]  # ids of the scored tokens, [K]
    nll: Values  # nats, [K]
    entropy: Values  # of the next-token distribution, nats, [K]
    is_top: NDArray[np.bool_]  # whether the target is the most probable token, [K]
    shorter: tuple[ShorterContext, ...]  # of the misalignment, one for each draw
    between: Values | None  # jeffreys with the window of each of the M lengths at the fixed targets, [M, num_targets]
