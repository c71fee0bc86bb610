"""The figures of the study: which numbers are drawn."""

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest

from longshort.synthetic import figures
from longshort.synthetic.summary import by_length, one_row_per_model

LENGTHS = np.arange(1, 21)


def models(*tasks):
    parts = []
    for place, task in enumerate(tasks):
        for encoding, slope in (("none", 1.0), ("rope", 3.0)):
            for seed in (0, 1):
                error = slope * (seed + 1) * LENGTHS * (place + 1)
                part = pd.DataFrame({"task": task, "encoding": encoding, "seed": seed, "length": LENGTHS})
                part = part.assign(error=error, output_error=error, undefined=0.0, misalignment=error / 7, scale=1.0)
                parts.append(part.assign(target_misalignment=LENGTHS / 5))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def drawn(monkeypatch):
    """Points by label, a dict per panel, and the bands, of the figure that is saved."""
    seen = {"lines": [], "bands": []}

    def keep(figure, *args, **kwargs):
        if not seen["lines"]:  # once, not for each kind of file
            for axes in figure.axes:
                seen["lines"].append({line.get_label(): line.get_xydata() for line in axes.lines})
                seen["bands"].append([band.get_paths()[0].get_extents() for band in axes.collections])

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return seen


def points(table, encoding, column, task="length"):
    part = table[(table["task"] == task) & (table["encoding"] == encoding)]
    return part[["length", column]].to_numpy(float)


def test_errors_are_geometric_means_with_their_bands(drawn, tmp_path):
    table = by_length(models("length"))
    figures.error_by_length(table, 10, "length", tmp_path / "x")
    (lines,), (bands,) = drawn["lines"], drawn["bands"]
    assert np.array_equal(lines["none"], points(table, "none", "error_geometric"))
    assert lines["none"][4, 1] == pytest.approx(np.sqrt(5 * 10))
    assert np.array_equal(lines["RoPE"], points(table, "rope", "error_geometric"))
    square = lines["(l − 10)²: stays at 10"]
    assert np.array_equal(square, np.stack([LENGTHS[10:], (LENGTHS[10:] - 10.0) ** 2], 1))
    none = table[table["encoding"] == "none"]
    assert bands[0].ymin == pytest.approx(none["error_geometric_lo"].min())
    assert bands[0].ymax == pytest.approx(none["error_geometric_hi"].max())


def test_the_mean_stands_beside_the_constant(drawn, tmp_path):
    figures.error_by_length(by_length(models("mean")), 10, "mean", tmp_path / "x")
    assert np.allclose(drawn["lines"][0]["constant ½: 0.25/l"], np.stack([LENGTHS, 0.25 / LENGTHS], 1))


def test_length_tasks_have_a_panel_each(drawn, tmp_path):
    table = by_length(models("mean", "length", "length-log"))
    figures.all_tasks(table, 10, tmp_path / "x")
    for lines, task in zip(drawn["lines"], ("length", "length-log"), strict=True):
        assert np.array_equal(lines["RoPE"], points(table, "rope", "error_geometric", task))


def test_misalignment_stands_beside_a_perfect_models(drawn, tmp_path):
    table = by_length(models("mean", "length"))
    figures.misalignment_by_length(table, 10, tmp_path / "x")
    for lines, task in zip(drawn["lines"], ("mean", "length"), strict=True):
        assert np.array_equal(lines["none"], points(table, "none", "misalignment", task)[1:])  # length 1 has none
        assert np.allclose(lines["perfect model"], np.stack([LENGTHS, LENGTHS / 5], 1)[1:])


def test_a_point_is_a_model_above_at_and_below_beyond_the_training_length(drawn, tmp_path):
    each = one_row_per_model(models("mean", "length"), 10)
    figures.misalignment_against_error(each, 10, tmp_path / "x")
    panels = iter(drawn["lines"])
    for column in ("misalignment", "misalignment_beyond"):
        for task in ("mean", "length"):
            part = each[(each["task"] == task) & (each["encoding"] == "rope")]
            assert np.array_equal(next(panels)["RoPE"], part[[column, "error_beyond"]].to_numpy(float))
