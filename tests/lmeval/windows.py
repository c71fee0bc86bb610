"""Windows of documents with random values, as an evaluation measures them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longshort.lmeval.token_values import ShorterContext, WindowValues


def random_windows(
    tokens: Sequence[int],
    lengths: Sequence[int],
    *,
    num_targets: int,
    num_special: int = 0,
    draws: int = 1,
    pass_per_length: bool = False,
    seed: int = 0,
) -> list[WindowValues]:
    """The windows of one document.

    Args:
        tokens: ids of special tokens and text, cut to one more than the longest length.
    """
    generator = np.random.default_rng(seed)
    last = len(tokens) - 1
    is_whole = last == lengths[-1]  # whether it has the fixed targets
    seconds = {length: generator.integers(-(-length // 2), length, draws).tolist() for length in lengths}
    wanted = {(last - length, length): seconds[length] for length in lengths if length <= last}
    for length in lengths if pass_per_length else [max((length for length in lengths if length <= last), default=0)]:
        if 0 < length <= last:
            wanted.setdefault((0, length), [])
    windows = []
    for (start, length), shorter in wanted.items():
        shared = [second - num_special for second in shorter]
        ends_at_last = start + length == last
        stop = start + length + ends_at_last  # a prefix alone says nothing of the next token
        count = stop - max(1, num_special) if start == 0 else max([*shared, num_targets])
        windows.append(
            WindowValues(
                start=start,
                length=length,
                first=stop - count,
                targets=np.array(tokens[stop - count : stop], dtype=np.int64),
                nll=_values(generator, count),
                entropy=_values(generator, count),
                is_top=generator.random(count) < 0.5,
                shorter=tuple(
                    ShorterContext(second, *(_values(generator, second - num_special) for _ in range(3)), agreement)
                    for second in shorter
                    for agreement in [(generator.random(second - num_special) < 0.5).astype(np.float32)]
                ),
                between=_values(generator, (len(lengths), num_targets)) if is_whole and ends_at_last else None,
            )
        )
    return windows


def _values(generator: Any, shape: Any) -> Any:
    return generator.gamma(2.0, size=shape).astype(np.float32)
