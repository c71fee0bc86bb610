"""What is shown of a token at each length, against loops over the rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longshort.show_tokens.documents import NONE, TokenDocument, document_of
from tests.token_files import Rows, rows_of_document

LENGTHS = (8, 16, 32)
TEXTS = [f" w{index}" for index in range(32)]


def frame(rows: Rows) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"shorter_length": float, "name": "category"})


def each(document: TokenDocument) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Position, length and what is shown of a token."""
    for one in document.lengths:
        for index, position in enumerate(document.position):
            shown = {name: float(values[index]) for name, values in one.nats.items()}
            shown |= {"start": int(one.start[index]), "shorter_length": int(one.shorter_length[index])}
            shown |= {name: bool(getattr(one, name)[index]) for name in ("is_top", "in_range", "fixed_target")}
            yield int(position), one.length, shown


def same(one: float, other: float | None) -> bool:
    return math.isnan(one) if other is None else one == pytest.approx(other, rel=1e-6, abs=2e-6)


@pytest.mark.parametrize("draws", [1, 3])
def test_every_token_at_every_length(draws: int) -> None:
    rows = rows_of_document(0, TEXTS, LENGTHS, draws=draws)
    document = document_of(frame(rows))
    assert [one.length for one in document.lengths] == list(LENGTHS)
    assert [one.draws for one in document.lengths] == [draws] * 3
    assert document.text == TEXTS
    assert document.position.tolist() == list(range(1, 33))
    seen = 0
    for position, length, shown in each(document):
        own = [row for row in rows if (row["position"], row["length"]) == (position, length)]
        if not own:
            assert shown["start"] == NONE
            assert all(math.isnan(shown[name]) for name in ("nll", "gain", "entropy", "jeffreys"))
            continue
        seen += 1
        first = next(row for row in own if row["draw"] == 0)
        assert shown["start"] == first["window_start"]
        for name in ("nll", "entropy"):
            assert same(shown[name], first[name])
        for name in ("is_top", "in_range", "fixed_target"):
            assert shown[name] == first[name]
        assert shown["shorter_length"] == (first["shorter_length"] or NONE)
        measured = [row["jeffreys"] for row in own if row["jeffreys"] is not None]
        assert same(shown["jeffreys"], sum(measured) / len(measured) if measured else None)
        contexts = {}
        for row in rows:
            if row["position"] == position:
                contexts[position - row["window_start"]] = row["nll"]
        context = position - first["window_start"]
        gain = contexts[min(contexts)] - first["nll"] if context > min(contexts) else None
        assert same(shown["gain"], gain)
    assert seen == 32 + 8 + 4


def test_of_two_windows_of_one_length_the_later_one_is_shown() -> None:
    """A model with one pass per length reads the first and the last tokens; a token in both is of the last."""
    rows = rows_of_document(0, TEXTS, LENGTHS)
    prefix = [row | {"window_start": 0, "nll": 50.0} for row in rows if row["length"] == 16]
    early = [row | {"position": row["position"] - 16, "window_start": 0, "nll": 60.0} for row in prefix]
    shown = {(position, length): one for position, length, one in each(document_of(frame([*rows, *prefix, *early])))}
    for row in rows:
        if row["length"] == 16:
            assert shown[row["position"], 16]["nll"] == pytest.approx(row["nll"])
            assert shown[row["position"], 16]["start"] == 16
    # The prefix of 16 tokens gives these the same context as the longest window: neither is the longer one.
    assert shown[9, 16]["nll"] == 60.0
    assert all(math.isnan(shown[9, length]["gain"]) for length in (16, 32))


def test_tokens_between_two_windows_are_not_there() -> None:
    rows = [row for row in rows_of_document(0, TEXTS, LENGTHS) if row["length"] == 16 or row["position"] < 5]
    document = document_of(frame(rows))
    assert document.position.tolist() == [1, 2, 3, 4, *range(25, 33)]
    assert document.text == [TEXTS[position - 1] for position in document.position]
    np.testing.assert_array_equal(document.token, document.position)
