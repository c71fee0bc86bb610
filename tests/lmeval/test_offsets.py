"""The offset between two contexts is uniform and reproducible."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longshort.lmeval.offsets import draw_offset


@given(st.integers(0, 5), st.integers(0, 100), st.integers(8, 5000))
def test_offset_is_one_to_half_the_length_and_reproducible(seed: int, document: int, length: int) -> None:
    offset = draw_offset(seed, document, length)
    assert 1 <= offset <= length / 2
    assert offset == draw_offset(seed, document, length)


def test_offsets_are_uniform() -> None:
    offsets = [draw_offset(0, document, 16) for document in range(4000)]
    counts = [offsets.count(offset) for offset in range(1, 9)]
    assert sum(counts) == 4000
    assert all(abs(count - 500) < 5 * 21 for count in counts)  # 5 standard deviations
