import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest

from longshort.analysis import wide_table
from longshort.analysis.figures import forest, misalignment_curve, misalignment_matrix, perplexity_by_length, scatter
from longshort.analysis.paper import short_label
from longshort.errors import UserError
from tests.analysis.analyses import EVIL, analysis, many, usual
from tests.analysis.conftest import LENGTHS


def texts_in(svg):
    return [element.text for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(scope="module")
def made():
    return usual()


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, unwritten: their axes hold the numbers."""
    figures = []
    for module in ("forest_plot", "lengths", "matrix", "points"):
        monkeypatch.setattr(
            f"longshort.analysis.figures.{module}.save_figure", lambda figure, _: figures.append(figure)
        )
    return figures


def bars(container):
    """Ends of an error bar's lines, [n, 2 ends, 2 coordinates]."""
    (lines,) = container.lines[2]
    return np.array(lines.get_segments())


def check(written, folder, stem):
    assert written == folder / f"{stem}.svg"
    assert list(folder.iterdir()) == [written]
    return texts_in(written)


@pytest.mark.parametrize("outcome", ["log_ppl@8192", "effective_length_tail", "log_ppl_increase@16384"])
def test_scatter_names_its_points_families_and_units(tidy, tmp_path, outcome):
    wide = wide_table(tidy)
    texts = check(scatter(wide, "sce", outcome, tmp_path / f"sce-{outcome}"), tmp_path, f"sce-{outcome}")
    assert {name.removeprefix("checkpoints/") for name in wide["checkpoint"]} <= set(texts)
    assert {"linear", "plain", "yarn", "SCE at the training context length (nats)"} <= set(texts)


def test_names_that_find_no_place_are_left_out(tidy, tmp_path):
    wide = wide_table(tidy).assign(sce=5.0)
    wide["log_ppl@8192"] = 3.0  # all on one spot
    texts = texts_in(scatter(wide, "sce", "log_ppl@8192", tmp_path / "spot"))
    assert 3 <= sum("alpha" in text for text in texts) < 9


def test_scatter_of_many_checkpoints(tmp_path):
    generator = np.random.default_rng(0)
    wide = pd.DataFrame(
        {
            "checkpoint": [f"c{index}" for index in range(60)],
            "revision": "main",
            "family": [f"family{index % 30}" for index in range(60)],
            "x": generator.normal(size=60),
            "y": generator.normal(size=60),
        }
    )
    file = scatter(wide, "x", "y", tmp_path / "many.svg")
    texts = texts_in(file)
    assert not {"c0", "family0"} & set(texts)
    assert {"x", "y"} <= set(texts)


@pytest.mark.parametrize("metric", ["ppl", "ppl_tail"])
def test_perplexity_by_length(tidy, tmp_path, metric):
    texts = check(perplexity_by_length(tidy, tmp_path / "by_length", metric), tmp_path, "by_length")
    assert {"plain-alpha0", "yarn-alpha0.5", "2048", "16384", "perplexity per token"} <= set(texts)
    assert any("trained at 4096" in text for text in texts)


def test_many_lines_are_named_by_family(tidy, tmp_path):
    parts = [tidy.assign(revision=f"step{index}") for index in range(3)]
    texts = texts_in(perplexity_by_length(pd.concat(parts), tmp_path / "many"))
    assert {"linear", "plain", "yarn"} <= set(texts)
    assert not any("alpha" in text for text in texts)


def test_errors_greater_than_the_value_and_unknown_ones_are_drawn(tidy, tmp_path):
    broad = tidy.assign(stderr=np.where(tidy["family"] == "yarn", np.nan, 1e3), train_length=pd.NA)
    check(perplexity_by_length(broad, tmp_path / "broad"), tmp_path, "broad")


def test_the_same_figure_is_the_same_file(tidy, tmp_path):
    one, other = (perplexity_by_length(tidy, tmp_path / name) for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_nothing_to_draw(tidy, tmp_path):
    for draw, arguments, fact in (
        (scatter, (wide_table(tidy).assign(sce=np.nan), "sce", "log_ppl@8192", tmp_path / "x"), "log_ppl@8192"),
        (perplexity_by_length, (tidy[tidy["metric"] != "ppl_tail"], tmp_path / "x", "ppl_tail"), "ppl_tail@L"),
        (misalignment_curve, (tidy[tidy["metric"] != "js"], tmp_path / "x", "js"), "js@L"),
        (misalignment_matrix, (tidy, tmp_path / "x"), "sce_between@L1-L2"),
        (forest, (usual().correlations.assign(kendall=np.nan), tmp_path / "x", "kendall"), "kendall"),
    ):
        with pytest.raises(UserError, match=fact) as raised:
            draw(*arguments)
        assert raised.value.kind == "data"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metric", ["sce", "agreement"])
def test_curve_shows_every_value_and_its_error(made, drawn, metric):
    misalignment_curve(made.tidy, "unwritten", metric)
    (axes,) = drawn[0].axes
    rows = made.tidy[made.tidy["metric"] == metric]
    expected = sorted(sorted(own["value"]) for _, own in rows.groupby(["checkpoint"]))
    shown = sorted(sorted(container.lines[0].get_ydata()) for container in axes.containers)
    np.testing.assert_allclose(shown, expected)
    for container in axes.containers:
        x, y = container.lines[0].get_data()
        assert list(x) == list(LENGTHS)
        stderr = {0.02, 0.01}  # of SCE and agreement
        ends = bars(container)
        np.testing.assert_allclose(ends.mean(axis=1)[:, 1], y)
        assert set(np.round(np.ptp(ends[:, :, 1], axis=1) / 2, 9)) <= stderr
    texts = {text.get_text().strip() for text in axes.texts}
    assert texts == {"trained at 4096"}


def test_curve_marks_every_train_length(made, drawn):
    tidy = made.tidy.assign(train_length=made.tidy["family"].map({"linear": 2048}).fillna(8192).astype("Int64"))
    misalignment_curve(tidy, "unwritten")
    (axes,) = drawn[0].axes
    assert {text.get_text().strip() for text in axes.texts} == {"trained at 2048", "trained at 8192"}
    upright = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    assert upright == [(2048, 2048), (8192, 8192)]


def test_names_are_text_and_are_shortened(made, tmp_path):
    texts = texts_in(misalignment_curve(made.tidy, tmp_path / "curve"))
    assert {EVIL, "a$b$c", f"{'x' * 14}…{'x' * 13}"} <= set(texts)


def test_a_crowd_is_lines_alone_with_a_legend_of_families(drawn):
    tidy = many(70, families=3).tidy
    perplexity_by_length(tidy, "unwritten")
    (axes,) = drawn[0].axes
    assert not axes.containers
    (lines,) = axes.collections
    rows = tidy[tidy["metric"] == "ppl"].sort_values("length")
    expected = [own["value"].tolist() for _, own in rows.groupby(["family", "checkpoint"])]
    assert [segment[:, 1].tolist() for segment in lines.get_segments()] == expected
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["family-0", "family-1", "family-2"]


@pytest.mark.parametrize("metric", ["sce_between", "jeffreys_between"])
def test_matrix_shows_every_pair_on_both_sides(made, drawn, metric):
    misalignment_matrix(made.tidy, "unwritten", metric)
    values = made.tidy.set_index(["checkpoint", "metric"])["value"].to_dict()
    names = {checkpoint.rpartition("/")[2]: checkpoint for checkpoint in made.wide["checkpoint"]}
    panels = [axes for axes in drawn[0].axes if axes.get_title() in names]
    assert len(panels) == 11  # the one of twelve whose name is shortened is not looked up
    colours = set()
    for axes in panels:
        (image,) = axes.images
        colours.add(image.get_clim())
        shown = np.ma.filled(image.get_array(), np.nan)
        for i, one in enumerate(LENGTHS):
            for j, other in enumerate(LENGTHS):
                low, high = min(one, other), max(one, other)
                value = values.get((names[axes.get_title()], f"{metric}@{low}-{high}"), np.nan)
                np.testing.assert_equal(shown[i, j], value)
                assert np.isnan(value) == (metric == "jeffreys_between" and one == other)
        written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
        assert written == {place: f"{value:.2f}" for place, value in np.ndenumerate(shown) if np.isfinite(value)}
    assert len(colours) == 1  # one scale for all


def test_matrix_of_many_takes_from_all_families_and_says_so(drawn):
    made = many(40, families=7)
    misalignment_matrix(made.tidy, "unwritten")
    families = dict(zip(made.wide["checkpoint"].str.removeprefix("org/"), made.wide["family"], strict=True))
    shown = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert len(shown) == 12
    assert {families[name] for name in shown} == set(families.values())
    assert drawn[0].get_suptitle() == "12 of 40 checkpoints"


def test_matrix_of_one_checkpoint_and_of_equal_values(tmp_path):
    one = analysis([("solo", "f")]).tidy
    check(misalignment_matrix(one.assign(value=1.0), tmp_path / "one"), tmp_path, "one")


@pytest.mark.parametrize("coefficient", ["pearson", "spearman", "kendall", "partial"])
def test_forest_shows_every_coefficient_and_interval(made, drawn, coefficient):
    forest(made.correlations, "unwritten", coefficient)
    axes = drawn[0].axes[0]
    shown = {}
    names = dict(zip(axes.get_yticks(), (text.get_text() for text in axes.get_yticklabels()), strict=True))
    for container in axes.containers:
        segments = container.lines[2][0].get_segments()  # one without a coefficient is empty
        for x, y, segment in zip(*container.lines[0].get_data(), segments, strict=True):
            shown[y] = (names[y], x, *(segment[:, 0] if np.isfinite(x) else (np.nan, np.nan)))
    ends = [coefficient, f"{coefficient}_lo", f"{coefficient}_hi"]
    expected = [
        (row["predictor"], *row[ends])
        for _, block in made.correlations.groupby("outcome", sort=False)
        for _, row in block.iterrows()
    ]
    for (name, *numbers), (predictor, *wanted) in zip([shown[y] for y in sorted(shown)], expected, strict=True):
        assert name == short_label(predictor)
        np.testing.assert_allclose(np.array(numbers, float), np.array(wanted, float))


def test_forest_tells_naive_intervals_and_counts(drawn, tmp_path):
    made = usual(naive=True)
    forest(made.correlations.drop(columns=["kendall_lo", "kendall_hi"]), "unwritten", "kendall")
    table = made.correlations.assign(interval=["naive", *["jackknife"] * (len(made.correlations) - 1)])
    forest(table, "unwritten")
    assert "naive" in drawn[0].axes[0].get_xlabel()
    lines = [container.lines[0] for container in drawn[1].axes[0].containers]
    assert [len(line.get_xdata()) for line in lines if line.get_markerfacecolor() == "white"] == [1]
    counts = [text.get_text() for text in drawn[1].axes[0].texts]
    assert counts.count("n = 12, F = 4") == len(table)


def test_scatter_leaves_out_what_is_not_finite(made, drawn):
    wide = made.wide.copy()
    wide.loc[0, "sce"], wide.loc[1, "log_ppl@16384"] = np.inf, np.nan
    scatter(wide, "sce", "log_ppl@16384", "unwritten")
    points = np.concatenate([container.lines[0].get_xydata() for container in drawn[0].axes[0].containers])
    assert sorted(map(tuple, points)) == sorted(zip(wide["sce"][2:], wide["log_ppl@16384"][2:], strict=True))


def test_families_in_a_crowd_can_be_told_apart(drawn):
    made = many(70, families=12)
    perplexity_by_length(made.tidy, "unwritten")
    (legend,) = drawn[0].legends
    looks = {(line.get_color(), line.get_linestyle()) for line in legend.get_lines()}
    assert len(looks) == 12
    (crowd,) = drawn[0].axes[0].collections
    styles = {
        (tuple(colour[:3]), str(style)) for colour, style in zip(crowd.get_colors(), crowd.get_linestyle(), strict=True)
    }
    assert len(styles) == 12


def test_small_values_of_a_matrix_are_not_written_as_zero(made, drawn):
    misalignment_matrix(made.tidy.assign(value=made.tidy["value"] * 1e-6), "unwritten")
    written = {text.get_text() for text in drawn[0].axes[0].texts}
    assert written
    assert "0.00" not in written
