"""Sampling of the offset between the two contexts of a misalignment; without torch, so that a plan can count tokens."""

from __future__ import annotations

import numpy as np


def draw_offset(seed: int, document: int, length: int) -> int:
    """Return e, uniform on {1 .. L/2}, for one document and length L: the contexts have L and L - e tokens.

    Args:
        document: index of the document.
        length: the longer context, in tokens.
    """
    generator = np.random.default_rng([seed, document, length])
    return int(generator.integers(1, length // 2, endpoint=True))
