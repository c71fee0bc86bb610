"""Sampling of the offset between the two contexts of a misalignment; without torch, so that a plan can count tokens."""

from __future__ import annotations

import numpy as np

# Documents of which the numerical floor is measured, the first ones of a run: enough for a standard error, few enough
# to cost little. In results/floors the floors of two documents differ by 3, 7 and 44 %.
FLOOR_DOCUMENTS = 4
STRATA = 32  # consecutive documents that are stratified together, each in its own 32nd of the distribution


def draw_offsets(seed: int, document: int, length: int, draws: int = 1) -> list[int]:
    """Return offsets e of one document at length L: the contexts have L and L - e tokens.

    With h = ⌊L/2⌋, an offset of 1 .. h has probability (h - e + 1) / (h (h + 1) / 2), in proportion to its positions
    with both contexts in [L/2, L]. A mean over these positions, then over draws, thus weights every pair of two context
    lengths in that range equally. Draws are stratified: the draws of a document lie in different parts of the
    distribution, and so do those of 32 consecutive documents; which document has which part is random.

    Args:
        seed: of the evaluation's settings.
        document: index of the document.
        length: the longer context, in tokens.
        draws: number of offsets.

    Source: Du et al., ICML 2025, draw both context lengths uniformly from [L/2, L]. The stratification is ours.
    """
    half = length // 2
    group, place = divmod(document, STRATA)
    generator = np.random.default_rng([seed, length, group])
    strata = np.stack([generator.permutation(STRATA) for _ in range(draws)])[:, place]  # [draws]
    within = generator.random((draws, STRATA))[:, place]
    quantiles = (np.arange(draws) + (strata + within) / STRATA) / draws
    counts = np.cumsum(np.arange(half, 0, -1))  # positions of the offsets 1 .. e
    places = np.searchsorted(counts, quantiles * counts[-1], side="right")
    return [1 + int(place) for place in np.minimum(places, half - 1)]  # a quantile may be rounded to 1
