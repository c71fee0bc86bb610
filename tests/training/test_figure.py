"""The picture of a run: what is in it, with and without misalignment and evaluations."""

import matplotlib.figure
import pytest

from longshort.training.figure import training_figure

ROWS = [
    {"step": step, "L_train": 3 / step, "misalign": 5.0, "entropy": 4.5, "jeffreys": 0.5, "lr": 1e-3}
    for step in (1, 2, 3)
]
EVALUATIONS = [
    {"step": step, "ppl@128": 9.0 - step, "ppl@256": 12.0, "sce": 4.0, "entropy": 3.5, "jeffreys": 0.5}
    for step in (0, 3)
]


@pytest.fixture
def panels(monkeypatch):
    """Lines by label, per panel, of the figure that is saved."""
    seen = {}

    def keep(figure, path, **kwargs):
        for axes in figure.axes:
            lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
            seen[axes.get_title(loc="left")] = lines

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", keep)
    return seen


def test_every_logged_value_is_drawn(panels, tmp_path):
    training_figure(ROWS, EVALUATIONS, tmp_path / "x.png")
    assert panels["L_train (nats)"] == {"L_train": [[1, 3], [2, 1.5], [3, 1]]}
    assert panels["misalignment (nats)"]["jeffreys"] == [[1, 0.5], [2, 0.5], [3, 0.5]]
    assert panels["misalignment (nats)"]["entropy, held out"] == [[0, 3.5], [3, 3.5]]
    assert panels["held-out perplexity"] == {"ppl@128": [[0, 9], [3, 6]], "ppl@256": [[0, 12], [3, 12]]}
    assert panels["learning rate"] == {"lr": [[1, 1e-3], [2, 1e-3], [3, 1e-3]]}


def test_no_length_is_lost_where_there_are_more_than_colours(panels, tmp_path):
    names = [f"ppl@{2**power}" for power in range(1, 13)]
    training_figure(ROWS, [row | dict.fromkeys(names, 7.0) for row in EVALUATIONS], tmp_path / "x.png")
    assert set(names) <= set(panels["held-out perplexity"])


def test_one_window_without_evaluations(panels, tmp_path):
    rows = [row | {"misalign": None, "entropy": None, "jeffreys": None} for row in ROWS]
    training_figure(rows, [], tmp_path / "x.png")
    assert list(panels) == ["L_train (nats)", "learning rate"]


def test_the_file_is_a_picture(tmp_path):
    training_figure(ROWS, EVALUATIONS, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
