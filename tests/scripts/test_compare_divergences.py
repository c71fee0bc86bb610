"""The table of the divergences, against differences taken by hand."""

import compare_divergences as script
import numpy as np
import pandas as pd
from scipy import stats


def test_a_cell_is_the_mean_and_its_t_interval():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert script.cell(pd.Series(values)) == f"4.000 [{low:.3f}, {high:.3f}]"
    assert script.cell(pd.Series([1.5])) == "1.500"


def test_rows_are_differences_from_the_run_of_the_same_seed():
    """Seeds are in another order in the second row: a difference by place would be another."""
    runs = [("none", 0.0, 0, 10.0), ("none", 0.0, 1, 20.0), ("sce", 0.1, 1, 21.0), ("sce", 0.1, 0, 13.0)]
    frame = pd.DataFrame(
        [
            {"divergence": divergence, "alpha": alpha, "seed": seed, "step": 200}
            | dict.fromkeys(script.MEASURED, value)
            for divergence, alpha, seed, value in runs
        ]
    )
    lines = script.table(frame).splitlines()
    assert lines[0].startswith("Held-out text after 200 steps, 2 seeds")
    plain, regularized = (line.split(" | ") for line in lines[4:])
    assert plain[:3] == ["| none", "0", script.cell(pd.Series([10.0, 20.0]))]
    assert regularized[:3] == ["| sce", "0.1", script.cell(pd.Series([3.0, 1.0]))]
