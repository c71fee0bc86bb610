"""NLL by position within the window: its numbers against loops, its figure, its place in the report."""

import hashlib
import json
import math
import shutil
import statistics
from itertools import pairwise
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest

from longshort.analysis import analyze, write_analysis
from longshort.analysis.figures import MAX_BANDS, nll_by_position
from longshort.analysis.positions import COLUMNS, bins
from tests.analysis.results_folder import TRAIN_LENGTH, measured, results_of, save
from tests.errors import assert_one, user_error
from tests.token_files import rows_of_document, write_token_file

LENGTHS = (16, 64, 128)
TEXTS = ["x"] * 128
STUDENT = {2: 12.706204736174698, 3: 4.302652729749462, 4: 3.182446305283708}  # 0.975 quantile for n documents


def tokens_of(seed, num_documents=4, draws=1):
    return [row for i in range(num_documents) for row in rows_of_document(i, TEXTS, LENGTHS, seed=seed, draws=draws)]


def save_run(folder, name, rows, **about):
    """A results file with its token file."""
    metrics = measured(np.random.default_rng(0), 0.5)
    results = save(folder, name, results_of(f"org/{name}", metrics, **about))
    if rows is not None:
        tokens = write_token_file(results.parent / "tokens.parquet", rows)
        digest = hashlib.sha256(tokens.read_bytes()).hexdigest()
        record = {"file": tokens.name, "sha256": digest, "rows": len(rows)}
        results.write_text(json.dumps(json.loads(results.read_text()) | {"longshort_tokens": record}))
    return results


@pytest.fixture(scope="module")
def runs():
    return {"one": tokens_of(1), "two": tokens_of(2, num_documents=3, draws=2), "three": tokens_of(3, num_documents=1)}


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    place = tmp_path_factory.mktemp("results")
    for name, rows in runs.items():
        save_run(place, name, rows, family=f"family of {name}")
    save_run(place, "without", None)
    return place


@pytest.fixture(scope="module")
def made(folder):
    return analyze(folder)


def mean_of_bin(rows, length, first, last):
    """Mean over documents, half of the interval, number of documents: by definition."""
    means = []
    for document in sorted({row["document"] for row in rows}):
        values = [
            row["nll"]
            for row in rows
            if row["document"] == document
            and row["length"] == length
            and row["draw"] == 0
            and first <= row["position"] - row["window_start"] <= last
        ]
        if values:
            means.append(sum(values) / len(values))
    count = len(means)
    half = STUDENT[count] * statistics.stdev(means) / math.sqrt(count) if count > 1 else math.nan
    return sum(means) / count, half, count


def test_every_number_is_the_mean_over_documents_of_means_over_tokens(made, runs):
    table = made.positions
    assert list(table) == list(COLUMNS)
    assert set(table["checkpoint"]) == {f"org/{name}" for name in runs}
    for row in table.itertuples():
        name = row.checkpoint.removeprefix("org/")
        assert (row.family, row.revision, row.train_length) == (f"family of {name}", "main", TRAIN_LENGTH)
        mean, half, count = mean_of_bin(runs[name], row.length, row.first, row.last)
        assert row.n == count
        np.testing.assert_allclose([row.nll, row.nll_lo, row.nll_hi], [mean, mean - half, mean + half], rtol=1e-5)
    assert not any("NLL by position" in note for note in made.notes)


def test_every_scored_position_is_in_one_bin(made, runs):
    for (name, length), rows in made.positions.groupby(["checkpoint", "length"]):
        own = runs[name.removeprefix("org/")]
        scored = {row["position"] - row["window_start"] for row in own if row["length"] == length}
        covered = [place for row in rows.itertuples() for place in range(row.first, row.last + 1)]
        assert len(covered) == len(set(covered))
        assert scored <= set(covered)


@pytest.mark.parametrize("length", [1, 2, 3, 16, 100, 32768])
def test_two_bins_per_doubling_cover_the_window(length):
    edges = bins(length).tolist()
    assert edges[0] == 1
    assert edges[-1] == length + 1
    assert all(one < other for one, other in pairwise(edges))
    assert all(other <= 1.5 * one + 1 for one, other in pairwise(edges[:-1]))
    assert edges[-1] - edges[-2] > 1 or length < 3
    assert abs(len(edges) - 1 - 2 * math.log2(length)) < 1.2


def test_the_figure_has_a_panel_per_length_and_the_numbers_of_the_table(made, monkeypatch):
    drawn = []
    monkeypatch.setattr("longshort.analysis.figures.positions.save_figure", lambda figure, _: drawn.append(figure))
    nll_by_position(made.positions, "unwritten")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [f"window of {length} tokens" for length in LENGTHS]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["one", "three", "two"]
    for axes, length in zip(figure.axes, LENGTHS, strict=True):
        curves = [line for line in axes.lines if len(line.get_xdata()) > 2 or line.get_linestyle() == "-"]
        for line, name in zip(curves, names, strict=False):
            own = made.positions[(made.positions["checkpoint"] == f"org/{name}") & (made.positions["length"] == length)]
            np.testing.assert_allclose(line.get_ydata(), own["nll"].to_numpy(float))
            assert (own["first"] <= line.get_xdata()).all()
            assert (line.get_xdata() <= own["last"]).all()
        assert len(axes.collections) == 3  # bands
        upright = [line for line in axes.lines if list(line.get_xdata()) == [TRAIN_LENGTH] * 2]
        assert len(upright) == (length == 128)


def test_bands_are_for_few_checkpoints(made, monkeypatch):
    drawn = []
    monkeypatch.setattr("longshort.analysis.figures.positions.save_figure", lambda figure, _: drawn.append(figure))
    many = [made.positions.assign(revision=f"step{index}") for index in range(MAX_BANDS // 3 + 1)]
    nll_by_position(pd.concat(many), "unwritten")
    assert not any(axes.collections for axes in drawn[0].axes)
    with user_error("data"):
        nll_by_position(made.positions.iloc[:0], "unwritten")


def test_the_report_shows_it_with_its_n(made, tmp_path):
    written = write_analysis(made, tmp_path)
    assert tmp_path / "figures" / "nll_by_position.svg" in written
    report = (tmp_path / "report.html").read_text()
    svg = (tmp_path / "figures" / "nll_by_position.svg").read_text("utf-8")
    assert svg in unquote(report)
    caption = report[report.index("<figcaption>NLL by position") :].partition("</figcaption>")[0]
    for fact in ("n = 1 to 4 documents", "3 checkpoints", "95 %"):
        assert fact in caption
    table = pd.read_csv(tmp_path / "positions.csv")
    np.testing.assert_allclose(table["nll"], made.positions["nll"])
    write_analysis(analyze_without_tokens(made), tmp_path)
    assert not list(tmp_path.glob("**/nll_by_position.*"))
    assert not (tmp_path / "positions.csv").exists()
    assert "NLL by position" not in (tmp_path / "report.html").read_text()


def analyze_without_tokens(made):
    made = type(made)(**vars(made) | {"positions": made.positions.iloc[:0]})
    return made


def test_no_token_file_is_no_note(tmp_path):
    save_run(tmp_path, "one", None)
    save_run(tmp_path, "two", tokens_of(0, 1)).with_name("tokens.parquet").unlink()
    made = analyze(tmp_path, strict=True)
    assert made.positions.empty
    assert not any("NLL by position" in note for note in made.notes)


def test_files_that_cannot_be_read_are_one_note(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "results")
    files = [tmp_path / "results" / name / "tokens.parquet" for name in ("one", "two")]
    files[0].write_bytes(files[0].read_bytes()[:1000])
    shutil.copy(tmp_path / "results" / "three" / "tokens.parquet", files[1])  # of another run
    made = analyze(tmp_path / "results")
    assert set(made.positions["checkpoint"]) == {"org/three"}
    assert_one(made.notes, "NLL by position", "org/one", "org/two")
    with user_error("data", files[0]):
        analyze(tmp_path / "results", strict=True)


def test_only_the_chosen_checkpoints_and_the_newest_results(folder, runs, tmp_path):
    assert set(analyze(folder, where="family == 'family of two'").positions["checkpoint"]) == {"org/two"}
    shutil.copytree(folder, tmp_path / "results")
    again = tokens_of(9)
    newer = save_run(tmp_path / "results", "again", again)
    data = json.loads(newer.read_text())
    newer.write_text(
        json.dumps(data | {"date": 200.0, "model_name": "org/one", "config": {"model_args": "pretrained=org/one"}})
    )
    table = analyze(tmp_path / "results").positions
    row = next(table[(table["checkpoint"] == "org/one") & (table["length"] == 128)].itertuples())
    assert row.nll == pytest.approx(mean_of_bin(again, 128, row.first, row.last)[0], rel=1e-5)
