"""A checkpoint in float32 and in half precision: compared value by value, and one point of the analysis."""

import numpy as np
import pandas as pd
import pytest

from longshort.analysis import analyze
from longshort.analysis.report import write_report
from tests.analysis.results_folder import LENGTHS, measured, results_of, save
from tests.analysis.test_floors import write_tables
from tests.analysis.test_report import Page, words
from tests.errors import assert_one

# What half precision adds to jeffreys, in floors, by length: 0.9 and −0.9 lie within the floor, 1.1 does not.
SHIFTS = dict(zip(LENGTHS, (0.9, 1.1, -0.9), strict=True))
BOTH = ("org/c0", "org/c1")  # measured in float32 and in bfloat16
FLOOR = 0.01


def in_dtype(name, metrics, dtype):
    data = results_of(name, metrics, family=f"family{name[-1]}", params=1000)
    data["config"]["model_args"]["dtype"] = dtype
    data["config"]["model_dtype"] = f"torch.{dtype}"
    return data


def save_both(folder):
    """Six checkpoints in bfloat16, two of them also in float32."""
    generator = np.random.default_rng(2)
    for index in range(6):
        name = f"org/c{index}"
        single = measured(generator, generator.uniform(0.2, 1))
        half = {task: dict(values) for task, values in single.items()}
        for length, shift in SHIFTS.items():
            half["longshort_misalignment"][f"jeffreys@{length}"] += shift * FLOOR
            half["longshort_misalignment"][f"jeffreys_floor@{length}"] = FLOOR
            half["longshort_perplexity"][f"ppl@{length}"] *= 1.01
        save(folder, f"{index}-half", in_dtype(name, half, "bfloat16"))
        if name in BOTH:
            save(folder, f"{index}-single", in_dtype(name, single, "float32"))
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return save_both(tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="module")
def analysis(results):
    return analyze(results)


def test_every_value_is_compared_with_its_floor(analysis, tmp_path):
    write_tables(analysis, tmp_path)
    table = pd.read_csv(tmp_path / "precisions.csv")
    assert set(table["checkpoint"]) == set(BOTH)
    assert set(table["dtype"]) == {"bfloat16"}
    assert len(table) == 2 * (15 + 12)  # the floors have no counterpart
    jeffreys = table[table["metric"] == "jeffreys"].set_index(["checkpoint", "length"])
    for name in BOTH:
        for length, shift in SHIFTS.items():
            row = jeffreys.loc[(name, length)]
            assert row["difference"] == pytest.approx(shift * FLOOR)
            assert row["value_half"] - row["value_float32"] == pytest.approx(shift * FLOOR)
            assert row["floor"] == FLOOR
            assert row["within_floor"] == (abs(shift) < 1)
            assert row["n"] == 8
    ppl = table[table["metric"] == "ppl"]
    np.testing.assert_allclose(ppl["value_half"] / ppl["value_float32"], 1.01)
    assert ppl[["floor", "within_floor"]].isna().all(axis=None)
    between = table[
        table["metric"].str.startswith("jeffreys_between")
    ]  # 1.0 in both, the floors of its lengths are equal
    assert (between["floor"] == FLOOR).all()
    assert (between["within_floor"] == True).all()  # noqa: E712  (it is an object column)


def test_the_sentence_counts(analysis):
    """Of 3 lengths of jeffreys 2 lie within, and all 3 pairs of lengths, for each of both checkpoints."""
    assert_one(analysis.notes, "54 values of 2 checkpoints", "n = 12", "10 differ", "precisions.csv")


def test_both_are_one_point_of_the_correlations(results, analysis):
    """The float32 one counts where both have the same values."""
    names = ["org/c0+dtype=float32", "org/c1+dtype=float32", *(f"org/c{index}" for index in range(2, 6))]
    assert analysis.wide["checkpoint"].tolist() == names
    table = analysis.correlations.assign(excess=lambda table: table["predictor"].str.contains("_excess"))
    assert set(table.loc[~table["excess"], "n"]) == {6}
    assert table.loc[table["excess"], "n"].max() < 6  # float32 has no numerical floor
    assert_one(
        analysis.notes, *(f"org/c{index}+dtype={dtype}" for index in (0, 1) for dtype in ("bfloat16", "float32"))
    )
    assert {"org/c0+dtype=bfloat16"} <= set(analysis.tidy["checkpoint"])  # in measurements.csv and the figures
    chosen = analyze(results, where="checkpoint == 'org/c0+dtype=bfloat16' or checkpoint == 'org/c2'")
    assert chosen.wide["checkpoint"].tolist() == ["org/c0+dtype=bfloat16", "org/c2"]
    about_dtypes = [[note for note in each.notes if "dtype of each checkpoint" in note] for each in (analysis, chosen)]
    assert [len(notes) for notes in about_dtypes] == [1, 0]


def test_the_one_with_more_values_counts(results, tmp_path):
    """Here the one in bfloat16, which alone has a LongBench-E score."""
    generator = np.random.default_rng(3)
    metrics = measured(generator, 0.5)
    save(tmp_path, "single", in_dtype("org/c0", metrics, "float32"))
    save(tmp_path, "half", in_dtype("org/c0", metrics | {"longshort_longbench_e": {"score": 40.0}}, "bfloat16"))
    assert analyze(tmp_path).wide["checkpoint"].tolist() == ["org/c0+dtype=bfloat16"]


def test_the_report_has_the_table_and_its_sentence(analysis, tmp_path, monkeypatch):
    monkeypatch.setattr("longshort.analysis.report.draw_figures", lambda *_: [])
    page = Page(write_report(analysis, tmp_path / "report.html").read_text("utf-8"))
    assert "54 values of 2 checkpoints were measured both in float32 and in bfloat16" in words(page.texts["precisions"])
    values = page.data["tables"]["precisions"]["values"]
    assert values["difference"] == pytest.approx(analysis.precisions["difference"].tolist(), rel=5e-6)
    assert {"value_float32", "value_half", "floor", "within_floor"} <= {
        column["key"] for column in page.data["tables"]["precisions"]["columns"] if column["print"]
    }


def test_without_both_there_is_no_table(results, tmp_path):
    (tmp_path / "precisions.csv").write_text("of an earlier analysis")
    analysis = analyze(results, where="checkpoint not in ['org/c0+dtype=float32', 'org/c1+dtype=float32']")
    assert analysis.precisions.empty
    write_tables(analysis, tmp_path)
    assert not (tmp_path / "precisions.csv").exists()
    page = (tmp_path / "report.html").read_text("utf-8")
    assert 'data-table="precisions"' not in page
