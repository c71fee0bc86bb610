"""Sampling of the offset between the two contexts of a misalignment; without torch, so that a plan can count tokens."""

from __future__ import annotations

import numpy as np

GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, spread most evenly, however many there are


def draw_offsets(seed: int, document: int, length: int, draws: int = 1) -> list[int]:
    """Return offsets e of one document at length L: the contexts have L and L - e tokens.

    With h = ⌊L/2⌋, an offset of 1 .. h has probability (h - e + 1) / (h (h + 1) / 2), in proportion to its positions
    with both contexts in [L/2, L]. A mean over these positions, then over draws, thus weights every pair of two context
    lengths in that range equally. Draws are stratified: over the draws of any number of consecutive documents, offsets
    are spread evenly over their distribution (multiples of the golden ratio from a random start).

    Args:
        seed: of the evaluation's settings.
        document: index of the document.
        length: the longer context, in tokens.
        draws: number of offsets.

    Source: Du et al., ICML 2025, draw both context lengths uniformly from [L/2, L]. The stratification is ours.
    """
    half = length // 2
    start = np.random.default_rng([seed, length]).random()  # the same for all documents
    quantiles = (start + GOLDEN * (document * draws + np.arange(draws))) % 1
    counts = np.cumsum(np.arange(half, 0, -1))  # positions of the offsets 1 .. e
    return [1 + int(place) for place in np.searchsorted(counts, quantiles * counts[-1], side="right")]
