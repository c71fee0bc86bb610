"""The second context length of a misalignment, drawn; needs no torch, so that a plan can count its tokens."""

from __future__ import annotations

import numpy as np


def draw_second_length(seed: int, document: int, length: int) -> int:
    """l2 = L - e with e uniform on {1 .. L/2}, in tokens, one draw per document and length."""
    generator = np.random.default_rng([seed, document, length])
    return length - int(generator.integers(1, length // 2, endpoint=True))
