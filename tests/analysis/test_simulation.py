"""The simulation script: quick coverage, and that it simulates what `correlations` does."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.analysis import compare, correlations

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_correlations.py"))


@pytest.mark.parametrize("name", SCRIPT["DESIGNS"])
def test_the_truth_is_that_of_a_great_many_families(name):
    design = SCRIPT["DESIGNS"][name]
    wide = SCRIPT["draw"](design, 20_000, np.random.default_rng(0))
    x, y, z = wide[["x", "y", "z"]].to_numpy().T
    design_matrix = np.column_stack([np.ones(len(z)), z])
    rest = [side - design_matrix @ np.linalg.lstsq(design_matrix, side, rcond=None)[0] for side in (x, y)]
    found = {
        "pearson": stats.pearsonr(x, y).statistic,
        "spearman": stats.spearmanr(x, y).statistic,
        "kendall": stats.kendalltau(x, y).statistic,
        "partial": stats.pearsonr(*rest).statistic,
    }
    for coefficient, value in found.items():
        assert design.truth(coefficient) == pytest.approx(value, abs=0.03)


def test_it_simulates_what_correlations_does():
    design = SCRIPT["DESIGNS"]["effect"]
    wide = SCRIPT["draw"](design, 8, np.random.default_rng(1))
    found = pd.DataFrame(SCRIPT["of_correlations"](design, wide, 50, 7)).set_index(["coefficient", "method"])
    for method, group in {"jackknife": "family", "naive": "everything"}.items():
        row = correlations(wide, ["x"], ["y"], ["z"], group=group).iloc[0]
        for name in ("pearson", "spearman", "kendall", "partial"):
            low, high, truth = row[f"{name}_lo"], row[f"{name}_hi"], design.truth(name)
            assert found["width"][name, method] == pytest.approx(high - low)
            assert found["covered"][name, method] == (low <= truth <= high)
            if (name, method) != ("kendall", "naive"):
                assert found["rejected"][name, method] == (row[f"{name}_p"] < 0.05)


@pytest.mark.parametrize(("name", "coefficient"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_it_simulates_what_compare_does(name, coefficient):
    """And the percentiles over families are those of a slow loop over the same draws."""
    design = SCRIPT["COMPARISONS"]["unlike"]
    wide = SCRIPT["draw"](design, 8, np.random.default_rng(1))
    found = pd.DataFrame(SCRIPT["of_comparisons"](design, wide, 50, 7)).set_index(["coefficient", "method"])["width"]
    row = compare(wide, [("x", "z")], ["y"]).iloc[0]
    prefix = {"pearson": "", "spearman": "spearman_"}[name]
    ends = [row[f"{prefix}difference_jackknife_{end}"] for end in ("lo", "hi")]
    assert found[f"difference of |{name}|", "jackknife"] == pytest.approx(ends[1] - ends[0])

    families = [part for _, part in wide.groupby("family")]
    differences = []
    for counts in SCRIPT["with_replacement"](8, 50, 7).astype(int):
        drawn = pd.concat([part for part, count in zip(families, counts, strict=True) for _ in range(count)])
        one, other = (abs(coefficient(drawn[side], drawn["y"]).statistic) for side in "xz")
        differences.append(one - other)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found[f"difference of |{name}|", "bootstrap"] == pytest.approx(high - low)


def test_draws_with_replacement():
    draws = SCRIPT["with_replacement"](7, 4000, seed=1)
    assert draws.shape == (4000, 7)
    assert (draws.sum(axis=1) == 7).all()
    assert draws.mean(axis=0) == pytest.approx(np.ones(7), abs=0.06)
    assert draws.var() == pytest.approx(6 / 7, abs=0.05)  # binomial(7, 1/7)
    low, high = SCRIPT["percentile"](np.append(np.arange(1001.0), np.nan))
    assert (low, high) == pytest.approx((25, 975))


def test_quick_coverage(tmp_path):
    SCRIPT["main"](["--quick", "--workers", "1", "-o", str(tmp_path)])
    table = pd.read_csv(tmp_path / "simulation.csv").set_index(["design", "coefficient", "method"])
    for name in ("pearson", "spearman", "kendall", "partial"):
        for design in ("no effect", "effect"):
            assert 0.89 < table["coverage"][design, name, "jackknife"] < 0.995
        assert table["rejected"]["no effect", name, "naive"] > 0.15
        assert table["rejected"]["no effect", name, "jackknife"] < 0.12
    assert table["rejected"]["spurious", "partial", "jackknife"] < 0.15
    assert table["rejected"]["spurious", "pearson", "jackknife"] > 0.4
    assert table["rejected"]["planted", "partial", "jackknife"] > 0.3
    assert (table["repetitions"]["effect"] == 200).all()
    text = (tmp_path / "simulation.md").read_text("utf-8")
    assert "200 repetitions" in text
    assert f"| partial | 0.600 | jackknife | {table['rejected']['planted', 'partial', 'jackknife']:.3f} |" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["simulation.csv", "simulation.md"]
