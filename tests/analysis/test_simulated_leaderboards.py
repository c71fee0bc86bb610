"""The simulation of leaderboards: its worlds are as said, and its claims are those of the leaderboard."""

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "simulate_leaderboards.py"))


@pytest.mark.parametrize("name", SCRIPT["WORLDS"])
def test_the_truth_is_that_of_a_great_many_families(name):
    loadings = SCRIPT["WORLDS"][name]
    wide = SCRIPT["draw"](loadings, 10_000, np.random.default_rng(0))
    for predictor, loading in zip(SCRIPT["PREDICTORS"], loadings, strict=True):
        assert stats.spearmanr(wide[predictor], wide["y"]).statistic == pytest.approx(
            SCRIPT["truth"](loading), abs=0.03
        )
    within = wide["y"].groupby(wide["family"]).var().mean()
    assert within / wide["y"].var() == pytest.approx(0.2, abs=0.02)


def test_the_claims_about_one_world_by_hand():
    loadings = (0.999, 0.0, 0.0, 0.0, 0.0, 0.0)
    wide = SCRIPT["draw"](loadings, 40, np.random.default_rng(3))
    found = SCRIPT["claims"](loadings, wide)
    assert found["best first"]
    assert found["best shown"]
    assert found["lead shown"]
    assert not found["wrong difference"]
    # The same world with another truth: what was right is wrong now.
    found = SCRIPT["claims"]((0.0, 0.999, 0.0, 0.0, 0.0, 0.0), wide)
    assert found["wrong predictor"]
    assert found["wrong difference"]
    assert found["wrong lead"]
    assert not found["best first"]
    assert not found["lead shown"]
    assert not found["interval of the first"]
    assert not found["interval of a difference"]


def test_shares_and_their_errors():
    claims = dict.fromkeys(SCRIPT["ABOUT"], 1.0) | {"wrong lead": 0.0, "best first": np.nan}
    rows = [claims | {"wrong predictor": float(index < 3), "world": "nothing", "families": 6} for index in range(12)]
    table = SCRIPT["summarize"](pd.DataFrame(rows)).set_index("claim")
    assert table.loc["wrong predictor", ["share", "worlds"]].tolist() == [0.25, 12]
    assert table.loc["wrong predictor", "error"] == pytest.approx(np.sqrt(0.25 * 0.75 / 12))
    assert "best first" not in table.index


def test_the_recorded_rates_of_wrong_claims_are_near_the_nominal_one():
    table = pd.read_csv(ROOT / "results" / "simulation" / "leaderboards.csv")
    wrong = table[table["claim"].str.startswith("wrong")]
    assert (wrong["worlds"] >= 500).all()
    assert wrong["share"].max() <= 0.09, wrong.nlargest(3, "share")
    quick = (ROOT / "results" / "simulation" / "leaderboards.md").read_text("utf-8")
    for row in table.itertuples():
        assert f"{row.share:.3f}" in quick
