"""Defaults and reading of task metadata (the refusals are tested through the tasks)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longshort.settings import EvalSettings, settings_from


def test_defaults_are_the_documented_ones() -> None:
    assert settings_from({"pretrained": "x", "dtype": "float32"}) == EvalSettings(
        corpus="pg19",
        lengths=(2048, 4096, 8192, 16384, 32768),
        train_length=4096,
        num_docs=32,
        tail_tokens=1024,
        seed=0,
    )


@given(st.lists(st.integers(8, 10**6), min_size=1, max_size=6))
def test_lengths_however_given(lengths: list[int]) -> None:
    expected = tuple(sorted(set(lengths)))
    for given_as in (lengths, tuple(lengths), ",".join(map(str, lengths)), [str(length) for length in lengths]):
        read = settings_from({"lengths": given_as})
        assert read.lengths == expected
        assert read.tail_tokens == expected[0] // 2


def test_metadata_holds_the_settings_and_nothing_unknown() -> None:
    kept = settings_from({"lengths": 64, "family": "a", "params": 7e9, "train_tokens": None}).to_metadata()
    assert kept["lengths"] == [64]
    assert kept["params"] == 7_000_000_000
    assert "train_tokens" not in kept
