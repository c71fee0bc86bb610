"""The table of numerical floors, from cells with known values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from floors.table import markdown, not_finite, summary

EXCESS, FLOOR = [0.02, 0.04, 0.03], [0.01, 0.05, 0.03]


def cells(model: str, dtype: str, *, overflows: bool = False) -> pd.DataFrame:
    rows = []
    for document, (excess, floor) in enumerate(zip(EXCESS, FLOOR, strict=True)):
        values = {"float32": 0.1, "rounded": 0.1, "half": 0.1 + excess, "aligned": floor, "masked": floor / 2}
        for quantity, value in values.items():
            lost = overflows and quantity not in ("float32", "rounded")
            jeffreys = np.nan if lost else value
            place = {"model": model, "dtype": dtype, "length": 512, "document": document, "products": "float32"}
            rows.append(place | {"positions": 64, "quantity": quantity, "jeffreys": jeffreys, "js": jeffreys / 8})
    return pd.DataFrame(rows)


def test_ratios_and_their_errors() -> None:
    table = summary(cells("tiny", "bfloat16")).set_index(["divergence", "candidate"])
    row = table.loc[("jeffreys", "aligned")]
    assert (row["n"], row["positions"]) == (3, 192)
    assert row["ratio"] == pytest.approx(0.09 / 0.09)
    without = np.array([0.08 / 0.07, 0.04 / 0.05, 0.06 / 0.06])
    assert row["ratio_stderr"] == pytest.approx(np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum()))
    assert (row["lowest"], row["highest"]) == pytest.approx((0.5, 1.25))
    assert row["excess"] == pytest.approx(0.03)
    assert table.loc[("js", "masked"), "floor"] == pytest.approx(0.03 / 16)


def test_a_model_that_overflows_is_named_and_takes_nothing_from_the_others() -> None:
    one = cells("tiny", "bfloat16")
    both = pd.concat([one, cells("tiny", "float16", overflows=True)])
    pd.testing.assert_frame_equal(summary(both), summary(one))
    assert (not_finite(one), not_finite(both)) == ([], ["tiny in float16"])
    text = markdown(summary(both), "command", not_finite(both))
    assert "tiny in float16" in text
    assert "nan" not in text
