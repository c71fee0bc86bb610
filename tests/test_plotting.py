import re

import numpy as np
import pytest
from matplotlib.text import Text

from longshort.errors import UserError
from longshort.plotting import label_points, new_figure, save_figure, style


def figure_of(points, names=(), bars=None):
    figure = new_figure(5, 4)
    axes = figure.subplots()
    axes.plot(*np.transpose(points), "o")
    axes.margins(0.3)
    bars = np.zeros_like(points) if bars is None else bars
    label_points(figure, axes, points, bars, names, ["k"] * len(names))
    return figure


def test_svg_unless_the_suffix_is_png(tmp_path):
    with style():
        figure = figure_of(np.zeros((0, 2)))
        assert save_figure(figure, tmp_path / "made" / "log_ppl@0.5") == tmp_path / "made" / "log_ppl@0.5.svg"
        assert save_figure(figure, tmp_path / "one.svg") == tmp_path / "one.svg"
        assert save_figure(figure, tmp_path / "other.png") == tmp_path / "other.png"
    assert b"<svg" in (tmp_path / "made" / "log_ppl@0.5.svg").read_bytes()
    assert (tmp_path / "other.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["made", "one.svg", "other.png"]


def test_characters_that_the_font_lacks_are_text_without_a_warning(tmp_path, recwarn):
    with style():
        file = save_figure(figure_of(np.zeros((1, 2)), ["日本"]), tmp_path / "one")
    assert "日本" in file.read_text("utf-8")
    assert not list(recwarn)


def test_coordinates_have_two_decimals_and_text_has_all(tmp_path):
    values = np.random.default_rng(0).uniform(size=(50, 2))
    with style():
        figure = new_figure()
        axes = figure.subplots()
        axes.plot(*values.T, gid="line")
        axes.set_title("0.123456 nats")
        figure.draw_without_rendering()
        svg = save_figure(figure, tmp_path / "one").read_text("utf-8")
        places = axes.transData.transform(values) * 72 / figure.dpi
    assert ">0.123456 nats<" in svg
    line = re.search(r'id="line">\s*<path d="([^"]*)"', svg)[1]
    drawn = np.array([[float(number) for number in point.split()] for point in re.findall(r"[ML] (\S+ \S+)", line)])
    np.testing.assert_allclose(drawn, np.column_stack([places[:, 0], 72 * 4.8 - places[:, 1]]), atol=0.011)
    assert max(len(number.partition(".")[2]) for number in re.findall(r"[\d.]+", line)) == 2


def test_equal_figures_are_equal_files(tmp_path):
    for name in "ab":
        with style():
            save_figure(figure_of(np.array([[0.0, 1], [1, 0]]), ["one", "other"]), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with style(), pytest.raises(UserError, match=r"x\.svg") as raised:
        save_figure(figure_of(np.zeros((0, 2))), tmp_path / "file" / "x")
    assert raised.value.kind == "unwritable"


def test_labels_cover_neither_points_nor_bars_nor_one_another():
    points = np.random.default_rng(0).uniform(0, 1, size=(12, 2))
    bars = np.full((12, 2), 0.05)
    with style():
        figure = figure_of(points, [f"checkpoint-{index}" for index in range(12)], bars)
        figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) >= 6
    assert not any(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    low, middle, high = (axes.transData.transform(points + side * bars) for side in (-1, 0, 1))
    for box in boxes:
        assert not any(box.contains(*point) for point in middle)
        across = (low[:, 0] < box.x1) & (high[:, 0] > box.x0) & (middle[:, 1] > box.y0) & (middle[:, 1] < box.y1)
        up = (low[:, 1] < box.y1) & (high[:, 1] > box.y0) & (middle[:, 0] > box.x0) & (middle[:, 0] < box.x1)
        assert not (across | up).any()


def test_labels_of_points_on_one_spot_are_skipped_where_there_is_no_place():
    with style():
        figure = figure_of(np.zeros((60, 2)), [f"checkpoint-{index}" for index in range(60)])
    assert 3 <= len(figure.axes[0].texts) < 60


def test_each_file_is_drawn_once(tmp_path, monkeypatch):
    """`Figure.savefig` draws a figure with a layout engine twice, and the layout is one of both files."""
    with style():
        figure = new_figure()
        figure.subplots().plot([0, 1], [0, 1])
        draws, layouts = [], []
        draw, execute = type(figure).draw, type(figure.get_layout_engine()).execute
        monkeypatch.setattr(type(figure), "draw", lambda self, renderer: draws.append(1) or draw(self, renderer))
        monkeypatch.setattr(
            type(figure.get_layout_engine()),
            "execute",
            lambda self, drawn: layouts.append(drawn.dpi) or execute(self, drawn),
        )
        save_figure(figure, tmp_path / "a", dpi=150)
    assert len(draws) == 1
    assert layouts == [150]
