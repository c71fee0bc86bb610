"""The table of CLEX's training before and after, against differences taken by hand."""

import compare_clex as script
import pandas as pd
from compare_divergences import cell


def test_differences_are_paired_by_seed():
    """Seeds are in another order after: a difference by place would be another."""
    runs = [("before", 0, 3.0), ("before", 1, 4.0), ("after", 1, 3.5), ("after", 0, 2.9)]
    frame = pd.DataFrame(
        [{"code": code, "seed": seed} | {f"nll@{n}": value for n in script.LENGTHS} for code, seed, value in runs]
    )
    lines = script.table(frame, 200).splitlines()
    assert "200 steps" in lines[0]
    assert "2 seeds" in lines[0]
    assert lines[4:] == [f"| {n} | 3.500 | 3.200 | {cell(pd.Series([-0.1, -0.5]))} |" for n in script.LENGTHS]
