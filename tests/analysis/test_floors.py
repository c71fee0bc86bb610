"""Values below three times their numerical floor are flagged wherever they are shown, and nothing else is."""

import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from longshort.analysis import (
    analyze,
    correlations,
    forest,
    misalignment_curve,
    misalignment_matrix,
    scatter,
    wide_table,
)
from longshort.analysis.command import show_leaderboards
from longshort.analysis.floors import below_floors, floors_of
from longshort.analysis.report import write_report
from longshort.analysis.write import write_analysis
from longshort.cli import app
from longshort.results import read_results
from tests.analysis.results_folder import LENGTHS, measured, results_of, save, save_folder
from tests.analysis.test_report import Page, words
from tests.errors import assert_error, assert_facts, assert_one

# Value divided by floor, by checkpoint and length: 2.5 is below three floors (and not below two), 3.5 is not.
RATIOS = {"m0": (2.5, 3.5, 3.5), "m1": (3.5, 2.5, 2.5), "m2": (2.9, 3.1, 10.0), "m3": (3.5, 3.5, 3.5)}
FLAGGED = {
    ("m0", 64), ("m1", 128), ("m1", 256), ("m2", 64),
}  # fmt: skip
PAIRS = ((64, 128), (64, 256), (128, 256))


def save_floors(folder, members=2):
    """Families m0 to m3 with floors, m4 in float32 without, `members` checkpoints each; only the first is flagged."""
    generator = np.random.default_rng(1)
    for family in ("m0", "m1", "m2", "m3", "m4"):
        for member in range(members):
            metrics = measured(generator, generator.uniform(0.2, 1))
            misalignment = metrics["longshort_misalignment"]
            for length, ratio in zip(LENGTHS, RATIOS.get(family, ()), strict=False):
                for name in ("jeffreys", "js"):
                    floor = misalignment[f"{name}@{length}"] / (ratio if member == 0 and name == "jeffreys" else 20)
                    misalignment[f"{name}_floor@{length}"] = floor
            data = results_of(f"org/{family}-{member}", metrics, family=family, params=1000)
            save(folder, f"{family}-{member}", data)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return save_floors(tmp_path_factory.mktemp("floors"))


@pytest.fixture(scope="module")
def analysis(results):
    return analyze(results)


def write_tables(analysis, folder):
    """The files of an analysis, of the figures the forest plot alone: drawing all takes most of the time."""

    def forest_alone(analysis, folder):
        return [forest(analysis.correlations, folder / "forest")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longshort.analysis.figures.draw_figures", forest_alone)
        write_analysis(analysis, folder)


@pytest.fixture(scope="module")
def written(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    write_tables(analysis, folder)
    return folder


def test_every_value_has_the_floor_at_its_length(results):
    tidy = read_results(results)
    floors = floors_of(tidy)
    values = {
        (checkpoint, metric, None if pd.isna(length) else length): value
        for checkpoint, metric, length, value in tidy[["checkpoint", "metric", "length", "value"]].to_numpy(object)
    }
    expected = []
    for checkpoint, metric, length in tidy[["checkpoint", "metric", "length"]].to_numpy(object):
        if metric in ("jeffreys", "js"):
            expected.append(values.get((checkpoint, f"{metric}_floor", length), np.nan))
        elif metric.startswith("jeffreys_between@"):
            ends = [int(end) for end in metric.removeprefix("jeffreys_between@").split("-")]
            both = [values.get((checkpoint, "jeffreys_floor", end), np.nan) for end in ends]
            expected.append(max(both) if not np.isnan(both).any() else np.nan)
        else:
            expected.append(np.nan)
    np.testing.assert_array_equal(floors, expected)
    assert np.isfinite(expected).sum() == 8 * (3 + 3 + 3)
    flagged = tidy[below_floors(tidy) & (tidy["metric"] == "jeffreys")]
    assert {
        (name[4:6], length) for name, length in zip(flagged["checkpoint"], flagged["length"], strict=True)
    } == FLAGGED
    assert len(flagged) == len(FLAGGED)
    assert not below_floors(tidy)[tidy["metric"] == "js"].any()


def test_a_table_with_repeated_index_and_a_missing_floor():
    about = {"checkpoint": "c", "revision": "main", "corpus": pd.NA}
    rows = [
        about | {"metric": "jeffreys", "length": 64, "value": 0.5},
        about | {"metric": "jeffreys_floor", "length": 64, "value": 0.2},
        about | {"metric": "jeffreys_between@64-128", "length": pd.NA, "value": 0.1},  # the floor at 128 is missing
        about | {"metric": "jeffreys", "length": 64, "value": 0.5, "checkpoint": "other"},
    ]
    tidy = pd.DataFrame(rows, index=[0, 0, 1, 1])
    np.testing.assert_array_equal(floors_of(tidy), [0.2, np.nan, np.nan, np.nan])
    assert below_floors(tidy).tolist() == [True, False, False, False]


def test_checkpoints_have_floors_and_flags(results, analysis, written):
    wide = pd.read_csv(written / "checkpoints.csv").set_index("checkpoint")
    assert wide.index[wide["jeffreys_below_floor"]].tolist() == ["org/m0-0", "org/m2-0"]  # at 64, the train length
    assert wide.index[wide["jeffreys_beyond_below_floor"]].tolist() == ["org/m1-0"]  # at 128
    assert wide["js_below_floor"].dtype == bool
    assert wide["jeffreys_floor"].isna().sum() == 2
    assert wide.loc["org/m0-0", "jeffreys"] == pytest.approx(2.5 * wide.loc["org/m0-0", "jeffreys_floor"])
    where = analyze(results, where="not jeffreys_below_floor").wide  # keeps those in float32
    assert set(analysis.wide["checkpoint"]) - set(where["checkpoint"]) == {"org/m0-0", "org/m2-0"}


def test_floors_are_no_predictors(results, analysis):
    assert not [name for name in analysis.settings["predictors"] if "floor" in name]
    assert not [name for name in analysis.settings["outcomes"] if "floor" in name]
    for name in ("jeffreys_floor", "js_beyond_below_floor"):
        done = CliRunner().invoke(app, ["correlate", str(results), "--predictor", name])
        assert_error(done.exception, "usage", f"'{name}'", field="predictor")
        assert "_floor, " not in done.exception.message


def test_measurements_have_floors_and_flags(written):
    table = pd.read_csv(written / "measurements.csv")
    assert table["below_floor"].dtype == bool
    jeffreys = table[table["metric"] == "jeffreys"]
    shown = jeffreys[jeffreys["below_floor"]]
    assert {(name[4:6], length) for name, length in zip(shown["checkpoint"], shown["length"], strict=True)} == FLAGGED
    np.testing.assert_array_equal(table["below_floor"], table["value"] / table["floor"] < 3)


def test_without_floors_no_file_has_a_new_column(tmp_path):
    analysis = analyze(save_folder(tmp_path / "results", families=5, members=1))
    write_tables(analysis, tmp_path / "out")
    for file in [*(tmp_path / "out").glob("*.csv"), *(tmp_path / "out").glob("correlations.*")]:
        assert "floor" not in file.read_text("utf-8"), file.name
    assert not [note for note in analysis.notes if "floor" in note]


def test_correlations_count_the_flagged_checkpoints_and_keep_them(analysis):
    table = analysis.correlations.set_index(["predictor", "outcome"])
    counts = {(predictor, count) for (predictor, _), count in table["n_below_floor"].items() if count}
    assert counts == {("jeffreys", 2), ("jeffreys_beyond", 1)}
    row = table.loc["jeffreys", "log_ppl@256"]
    wide = analysis.wide
    assert row["n"] == 10
    assert row["pearson"] == pytest.approx(np.corrcoef(wide["jeffreys"], wide["log_ppl@256"])[0, 1])
    assert_facts(row["note"], "2 of 10", "jeffreys", "3 times its numerical floor")
    assert "floor" not in table.loc["sce", "log_ppl@256"]["note"]
    compared = analysis.comparisons.set_index(["predictor", "other", "outcome"])
    assert_facts(compared.loc["sce", "jeffreys", "log_ppl@256"]["note"], "2 of 10", "jeffreys")
    assert "floor" not in compared.loc["sce", "entropy", "log_ppl@256"]["note"]


def test_only_checkpoints_of_the_pair_are_counted(analysis):
    """The one of the two flagged checkpoints that has no outcome is not among the n."""
    wide = analysis.wide.copy()
    wide.loc[wide["checkpoint"] == "org/m0-0", "log_ppl@256"] = np.nan
    (row,) = correlations(wide, ["jeffreys"], ["log_ppl@256"]).to_dict("records")
    assert (row["n"], row["n_below_floor"]) == (9, 1)


def test_notes_count_the_values_and_name_the_checkpoints(analysis):
    """Of jeffreys_between, each pair with the larger floor of its lengths; all are 1.0."""
    tidy = analysis.tidy.set_index(["checkpoint", "metric", "length"])["value"]
    between = 0
    for family in RATIOS:
        for member in range(2):
            floors = {length: tidy[f"org/{family}-{member}", "jeffreys_floor", length] for length in LENGTHS}
            between += sum(1.0 / max(floors[one], floors[other]) < 3 for one, other in PAIRS)
    assert between > 0
    assert_one(analysis.notes, f"{len(FLAGGED) + between} of the 72", "3")
    assert_one(analysis.notes, "jeffreys: ", "2 of 10", "org/m0-0, org/m2-0", "jeffreys_below_floor")
    assert_one(analysis.notes, "jeffreys_beyond: ", "1 of 10", "org/m1-0")
    assert not [note for note in analysis.notes if note.startswith("js")]


def test_the_terminal_marks_them_within_80_columns(analysis):
    screen = io.StringIO()
    show_leaderboards(analysis, Console(width=80, file=screen))
    lines = screen.getvalue().splitlines()
    marked = {re.split(r" +−?\d", line.strip()[2:].strip())[0] for line in lines if "10‡ (5)" in line}
    assert marked == {"Jeffreys", "Jeffreys (beyond)"}
    assert_facts(" ".join(lines), "‡ Includes values below 3 times their numerical floor")
    assert max(map(len, lines)) <= 80


def test_markdown_and_latex_mark_them(written):
    markdown = (written / "correlations.md").read_text("utf-8")
    assert {line.split("|")[1].strip() for line in markdown.splitlines() if "| 10‡ |" in line} == {
        "Jeffreys",
        "Jeffreys (beyond)",
    }
    assert "‡ Includes values below 3 times their numerical floor" in markdown
    assert "Jeffreys & 10$^\\ddagger$ &" in (written / "correlations.tex").read_text("utf-8")


def points_of(axes):
    """Face colour is white, and x, y of every point with a marker."""
    lines = [line for line in axes.lines if line.get_marker() not in ("None", "|", "_", 0, 1, 2, 3, None)]
    return {
        (float(x), float(y), line.get_markerfacecolor() == "white")
        for line in lines
        for x, y in zip(*line.get_data(), strict=True)
    }


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    for module in ("lengths", "matrix", "points"):
        monkeypatch.setattr(
            f"longshort.analysis.figures.{module}.save_figure", lambda figure, _: figures.append(figure)
        )
    return figures


def test_scatter_has_hollow_points(analysis, drawn):
    scatter(analysis.wide, "jeffreys", "log_ppl@256", "unwritten")
    (axes,) = drawn[0].axes
    wide = analysis.wide
    flagged = wide["checkpoint"].isin(["org/m0-0", "org/m2-0"])
    assert points_of(axes) == set(zip(wide["jeffreys"], wide["log_ppl@256"], flagged, strict=True))
    assert_facts(words(axes.get_xlabel()), "hollow", "3 times its numerical floor")
    assert "hollow" not in axes.get_ylabel()
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["m0", "m1", "m2", "m3", "m4"]
    scatter(analysis.wide, "sce", "log_ppl@256", "unwritten")
    assert not any(hollow for *_, hollow in points_of(drawn[1].axes[0]))
    assert "hollow" not in drawn[1].axes[0].get_xlabel()


@pytest.mark.parametrize("crowd", [60, 3])
def test_curve_has_hollow_points(analysis, drawn, monkeypatch, crowd):
    monkeypatch.setattr("longshort.analysis.figures.lengths.CROWD", crowd)
    misalignment_curve(analysis.tidy, "unwritten", "jeffreys")
    (axes,) = drawn[0].axes
    rows = analysis.tidy[analysis.tidy["metric"] == "jeffreys"]
    expected = {
        (float(length), value)
        for name, length, value in rows[["checkpoint", "length", "value"]].to_numpy(object)
        if name.endswith("-0") and (name[4:6], length) in FLAGGED
    }
    assert {(x, y) for x, y, hollow in points_of(axes) if hollow} == expected
    assert len(expected) == 4
    assert_facts(words(axes.get_xlabel()), "hollow", "3 times its numerical floor")
    misalignment_curve(analysis.tidy, "unwritten", "js")
    assert not any(hollow for *_, hollow in points_of(drawn[1].axes[0]))
    assert "hollow" not in drawn[1].axes[0].get_xlabel()


@pytest.mark.parametrize("numbered", [True, False])
def test_matrix_marks_cells(analysis, drawn, monkeypatch, numbered):
    monkeypatch.setattr("longshort.analysis.figures.matrix.MAX_NUMBERED", 6 if numbered else 2)
    misalignment_matrix(analysis.tidy, "unwritten", "jeffreys_between")
    tidy = analysis.tidy.set_index(["checkpoint", "metric", "length"])["value"]
    for axes in drawn[0].axes[:-1]:
        name = f"org/{axes.get_title()}"
        floors = {n: tidy.get((name, "jeffreys_floor", n), 0.0) for n in LENGTHS}
        expected = {(i, j) for i in range(3) for j in range(3) if i != j}
        expected = {(i, j) for i, j in expected if 3 * max(floors[LENGTHS[i]], floors[LENGTHS[j]]) > 1.0}
        texts = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
        assert {place for place, text in texts.items() if "‡" in text} == expected
        assert all(text in (("1.00", "1.00‡") if numbered else ("‡",)) for text in texts.values())
    assert_facts(words(drawn[0].axes[-1].get_ylabel()), "‡", "3 times its numerical floor")


def test_forest_marks_the_counts(written):
    texts = [
        element.text
        for element in ElementTree.parse(written / "figures" / "forest.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    outcomes = texts.count("Jeffreys")
    assert texts.count("n = 10‡, F = 5") == 2 * outcomes > 0  # jeffreys and jeffreys_beyond
    assert any(text.startswith("‡") for text in texts)


def test_report_flags_and_explains(analysis, tmp_path):
    page = Page(write_report(analysis, tmp_path / "report.html").read_text("utf-8"))
    assert "Jeffreys ‡" in words(page.texts["findings"])
    assert_facts(words(page.texts["first"]), "Hollow points", "3 times its numerical floor", "‡")
    assert_facts(words(page.texts["figures"]), "hollow points are below 3 times their numerical floor")
    assert_facts(words(page.texts["settings"]), "org/m0-0, org/m2-0")
    checkpoints = page.data["tables"]["checkpoints"]
    assert "jeffreys_floor" in checkpoints["values"]
    assert not [
        column for column in checkpoints["columns"] if "floor" in column["key"]
    ]  # they are part of a value's cell
    assert "n_below_floor" in {column["key"] for column in page.data["tables"]["correlations"]["columns"]}


def test_wide_table_of_a_checkpoint_without_floors_first(results):
    tidy = read_results(results).sort_values("checkpoint", ascending=False)
    wide = wide_table(tidy)
    names = list(wide)
    assert names[names.index("jeffreys") :][:4] == [
        "jeffreys", "jeffreys_stderr", "jeffreys_floor", "jeffreys_below_floor",
    ]  # fmt: skip
