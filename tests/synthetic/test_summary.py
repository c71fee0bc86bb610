import numpy as np
import pandas as pd
import pytest
from scipy import stats

from longshort.synthetic.summary import (
    by_length,
    comparisons,
    correlation_interval,
    correlations,
    growth_exponents,
    mean_interval,
    one_row_per_model,
)


def models(task="length", exponents=(2.0, 2.5, 3.0), encodings=("none",)):
    lengths = np.arange(1, 51)
    parts = []
    for encoding in encodings:
        for seed, exponent in enumerate(exponents):
            error = np.where(lengths > 10, np.abs(lengths - 10.0) ** exponent, 0.01)
            part = pd.DataFrame({"task": task, "encoding": encoding, "seed": seed, "length": lengths, "error": error})
            part = part.assign(output_error=error, undefined=0.0, misalignment=lengths / 10, target_misalignment=0.1)
            parts.append(part.assign(scale=2.0))
    return pd.concat(parts, ignore_index=True)


def test_mean_interval_is_scipys():
    values = np.array([1.0, 2.0, 4.0, 8.0, 9.0])
    low, high = stats.t.interval(0.95, 4, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx((values.mean(), low, high))
    assert np.isnan(mean_interval(values[:1])[1:]).all()


def test_interval_covers():
    random = np.random.default_rng(0)
    draws = [mean_interval(random.normal(3, 1, 5)) for _ in range(2000)]
    assert np.mean([low <= 3 <= high for _, low, high in draws]) == pytest.approx(0.95, abs=0.02)


def test_growth_exponent_is_recovered():
    row = growth_exponents(models(), 10).iloc[0]
    expected = mean_interval(np.array([2.0, 2.5, 3.0]))
    assert row[["exponent", "exponent_lo", "exponent_hi"]].tolist() == pytest.approx(expected)
    assert row[["exponent_far", "exponent_far_lo", "exponent_far_hi"]].tolist() == pytest.approx(expected)
    assert row["theorem_3_1"] == 2
    assert growth_exponents(models("mean"), 10).empty


def test_by_length():
    table = by_length(models("mean"))
    assert table["constant_half"].tolist() == pytest.approx([0.25 / length for length in range(1, 51)])
    last = table.iloc[-1]
    errors = 40.0 ** np.array([2.0, 2.5, 3.0])
    assert last["error"] == pytest.approx(errors.mean())
    assert last["error_geometric"] == pytest.approx(40**2.5)
    assert last["error_geometric_lo"] > 0
    assert by_length(models())["constant_half"].isna().all()


def test_one_row_per_model():
    row = one_row_per_model(models(exponents=(2.0,)), 10).iloc[0]
    squares = np.arange(1, 41) ** 2.0
    assert row["error_beyond"] == pytest.approx(squares.mean())
    assert row["error_within"] == pytest.approx(0.01)
    assert row["error_longest"] == 1600
    assert row["misalignment"] == 1
    assert row["misalignment_beyond"] == pytest.approx(np.arange(11, 51).mean() / 10)
    assert row["scaled_misalignment_beyond"] == pytest.approx(np.arange(11, 51).mean() / 20)
    assert row["scaled_misalignment"] == 0.5
    assert row["scaled_error_beyond"] == pytest.approx(squares.mean() / 4)


def test_comparisons_are_ratios_paired_by_seed():
    rows = [("mean", "none", [1e-3, 4e-3]), ("mean", "rope", [2e-3, 8e-3])]
    rows += [("length", "rope", [4.0, 9.0]), ("length-log", "rope", [1.0, 1.0])]
    each = pd.DataFrame(
        [
            {"task": task, "encoding": encoding, "seed": seed, "error_beyond": error}
            for task, encoding, errors in rows
            for seed, error in enumerate(errors)
        ]
    )
    table = comparisons(each, range(1, 51), 10).set_index(["task", "encoding", "against"])
    half = np.mean([0.25 / length for length in range(11, 51)])
    assert table.loc[("mean", "none", "constant ½"), "ratio"] == pytest.approx(2e-3 / half)
    assert table.loc[("mean", "rope", "no positions")].tolist() == pytest.approx([2, 2, 2])
    assert table.loc[("length-log", "rope", "plain length"), "ratio"] == pytest.approx(1 / 6)
    assert len(table) == 4


def test_correlations_find_a_power_law_and_keep_their_interval_around_noise():
    random = np.random.default_rng(1)
    rows = []
    for encoding in "abcdef":
        for seed in range(5):
            x = float(random.uniform(1, 9))
            noisy = x**3 * float(np.exp(random.normal(0, 0.5)))
            rows.append({"task": "mean", "encoding": encoding, "seed": seed, "misalignment": x, "error_beyond": x**3})
            rows[-1] |= {"misalignment_beyond": x, "scaled_misalignment": x, "scaled_misalignment_beyond": x}
            rows[-1] |= {"scaled_error_beyond": noisy}
    table = correlations(pd.DataFrame(rows)).set_index(["predictor", "scope"])
    exact, noisy = table.loc[("misalignment", "all")], table.loc[("scaled_misalignment", "all")]
    assert exact["spearman"] == pytest.approx(1)
    assert exact["pearson"] == pytest.approx(1)
    assert noisy["pearson_lo"] < noisy["pearson"] < noisy["pearson_hi"] < 1
    assert (noisy["models"], noisy["settings"]) == (30, 6)


def test_within_tasks_differences_between_tasks_do_not_count():
    x = np.exp(np.arange(1.0, 6.0))
    groups = [("mean", x, 1 / x), ("length", x * 1e6, 1e6 / x)]  # falling in each task, rising over both
    rows = [
        {"task": task, "encoding": str(index), "misalignment": a, "misalignment_beyond": a, "error_beyond": b}
        for task, predictors, outcomes in groups
        for index, (a, b) in enumerate(zip(predictors, outcomes, strict=True))
    ]
    each = pd.DataFrame(rows)
    each = each.assign(scaled_misalignment=1.0, scaled_misalignment_beyond=1.0, scaled_error_beyond=1.0)
    with np.errstate(invalid="ignore"):
        table = correlations(each).set_index(["predictor", "scope"])
    assert table.loc[("misalignment", "all"), "pearson"] > 0.5
    assert table.loc[("misalignment", "within tasks"), "pearson"] == pytest.approx(-1)
    assert table.loc[("misalignment", "mean"), "pearson"] == pytest.approx(-1)


def test_an_interval_needs_four_settings_and_a_coefficient_two():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 8))
    value, low, high = correlation_interval("pearson", x, y, np.repeat(np.arange(2), 4))
    assert value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert np.isnan([low, high]).all()
    assert np.isfinite(correlation_interval("spearman", x, y, np.repeat(np.arange(4), 2))).all()
    assert np.isnan(correlation_interval("pearson", x[:2], y[:2], np.arange(2))).all()


@pytest.mark.parametrize(("name", "coefficient"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_the_jackknife_is_the_textbooks(name, coefficient):
    """Efron and Tibshirani 1993: the variance is (F - 1) / F times the sum of squares around the mean left out."""
    random = np.random.default_rng(2)
    groups = np.repeat(np.arange(5), 3)
    x = random.normal(size=15) + np.repeat(random.normal(size=5), 3)
    y = x + random.normal(size=15)

    without = np.arctanh([coefficient(x[groups != index], y[groups != index]).statistic for index in range(5)])
    error = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    z, half = np.arctanh(coefficient(x, y).statistic), stats.t.ppf(0.975, 4) * error
    expected = np.tanh([z, z - half, z + half])
    assert correlation_interval(name, x, y, groups) == pytest.approx(tuple(expected))


def test_a_perfect_rank_correlation_keeps_its_interval():
    """Four settings of two models; as in Efron and Tibshirani, with Fisher's z cut off just inside ±1."""
    groups = np.repeat(np.arange(4), 2)
    x = np.arange(8.0)
    assert correlation_interval("spearman", x, -x, groups) == pytest.approx((-1, -1, -1))
    y = np.array([0.0, 1, 2, 3, 4, 5, 7, 6])  # without the last setting it is 1
    rho = [stats.spearmanr(x[groups != index], y[groups != index]).statistic for index in range(4)]
    without = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    error = np.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    z, half = np.arctanh(stats.spearmanr(x, y).statistic), stats.t.ppf(0.975, 3) * error
    expected = tuple(np.tanh([z, z - half, z + half]))
    assert correlation_interval("spearman", x, y, groups) == pytest.approx(expected, rel=1e-6)


def test_far_is_twice_the_training_length():
    """An exponent of 4 up to 19 and of 1 from 20 on."""
    table = models(exponents=(1.0, 1.0))
    lengths = table["length"]
    near = (lengths > 10) & (lengths < 20)
    table["error"] = np.where(near, (lengths - 10.0) ** 4, table["error"])
    row = growth_exponents(table, 10).iloc[0]
    assert row["exponent_far"] == pytest.approx(1)
    assert row["exponent"] != pytest.approx(1, abs=0.1)
