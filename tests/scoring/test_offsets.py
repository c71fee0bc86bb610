"""Offsets have their probability, are spread evenly over documents, and the same for every checkpoint."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.scoring.offsets import draw_offsets


@given(st.integers(0, 5), st.integers(0, 100), st.integers(8, 5000), st.integers(1, 5))
def test_offsets_are_one_to_half_the_length_and_reproducible(seed: int, document: int, length: int, draws: int) -> None:
    offsets = draw_offsets(seed, document, length, draws)
    assert len(offsets) == draws
    assert all(1 <= offset <= length / 2 for offset in offsets)
    assert offsets == draw_offsets(seed, document, length, draws)


@pytest.mark.parametrize("length", [8, 9, 16, 17])
@pytest.mark.parametrize("draws", [1, 3])
def test_an_offset_comes_up_as_often_as_it_has_pairs_of_lengths(length: int, draws: int) -> None:
    """The definition, counted out: pairs of two different context lengths in [L/2, L], all equally often."""
    in_range = range((length + 1) // 2, length + 1)
    pairs = [longer - shorter for longer in in_range for shorter in in_range if shorter < longer]
    offsets = Counter(e for i in range(20 * len(pairs)) for e in draw_offsets(7, i, length, draws))
    for offset, count in Counter(pairs).items():
        assert abs(offsets[offset] - 20 * draws * count) <= 15
    assert set(offsets) == set(pairs)


def test_one_document_has_every_offset_in_proportion_to_its_pairs() -> None:
    offsets = Counter(draw_offsets(seed, 2, 16)[0] for seed in range(3600))
    for offset in range(1, 9):
        expected = 100 * (9 - offset)  # of 3600
        assert abs(offsets[offset] - expected) < 5 * (expected * (1 - expected / 3600)) ** 0.5


def test_offsets_scatter_less_over_documents_than_independent_ones() -> None:
    together = [np.mean([draw_offsets(seed, i, 128)[0] for i in range(32)]) for seed in range(100)]
    alone = [np.mean([draw_offsets(32 * seed + i, 0, 128)[0] for i in range(32)]) for seed in range(100)]
    assert np.std(together) < np.std(alone) / 5


def test_a_document_spreads_its_draws_over_the_distribution() -> None:
    offsets = draw_offsets(0, 3, 4096, draws=4)
    # Quarters of the distribution: the probability of e or less is 1 - (1 - e/h)² for a large h.
    assert [int(4 * (1 - (1 - offset / 2048) ** 2)) for offset in offsets] == [0, 1, 2, 3]
