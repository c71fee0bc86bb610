"""Which files an analysis leaves in its folder."""

from dataclasses import replace

import pandas as pd
import pytest

from longshort.analysis import write_analysis
from tests.analysis.analyses import usual

MATPLOTLIB = "<svg><metadata><dc:title>Matplotlib v3.10.0, https://matplotlib.org/</dc:title></metadata></svg>"
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00:tEXtSoftware\x00Matplotlib version3.10.0, https://matplotlib.org/"
STALE = {  # of earlier versions, and of another analysis
    "forest.png": PNG,
    "forest.svg": MATPLOTLIB.encode(),
    "misalignment_matrix_sce.png": PNG,
    "scatter_sce_log_ppl@128.svg": MATPLOTLIB.encode(),
    "scatter_jeffreys_beyond_babilong_qa1-acc.png": PNG,
    "nll_by_position.svg": MATPLOTLIB.replace("Matplotlib v3.10.0, https://matplotlib.org/", "longshort").encode(),
}
KEPT = {  # of the user: another name, or another program
    "scatter_mine.png": PNG,
    "my_forest.svg": MATPLOTLIB.encode(),
    "forest.pdf": b"%PDF",
    "nll_by_position.png": b"\x89PNG drawn by hand",
    "scatter_sce_notes.svg": b"<svg>by Inkscape</svg>",
    "notes.txt": b"Matplotlib",
}


@pytest.fixture(scope="module")
def made():
    return usual()


def test_stale_figures_are_removed_only_if_they_are_ours(made, tmp_path, monkeypatch):
    monkeypatch.setattr("longshort.analysis.figures.draw_figures", lambda *_: [])
    (tmp_path / "figures").mkdir()
    for name, content in (STALE | KEPT).items():
        (tmp_path / "figures" / name).write_bytes(content)
    write_analysis(made, tmp_path)
    assert {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()} == KEPT


def test_each_figure_is_drawn_once_and_the_report_embeds_it(made, tmp_path, monkeypatch):
    saved = []
    from longshort import plotting

    write = plotting.write_atomically
    monkeypatch.setattr(plotting, "write_atomically", lambda path, content: (saved.append(path), write(path, content)))
    written = write_analysis(made, tmp_path)
    assert len(saved) == len(set(saved))
    assert sorted(saved) == sorted((tmp_path / "figures").iterdir()) == sorted(set(saved) & set(written))
    assert {file.suffix for file in saved} == {".svg"}
    report = (tmp_path / "report.html").read_text("utf-8")
    assert report.count("data:image/svg+xml,") == len(saved) - 2  # the page draws leaderboard and scatter plot itself


def test_recall_by_length_and_depth_is_drawn_and_in_the_report(made, tmp_path):
    cells = [
        {"checkpoint": "a", "revision": "main", "length": length, "depth": depth, "recall": depth, "n": 8}
        for length in (64, 128)
        for depth in (0.0, 0.5, 1.0)
    ]
    written = write_analysis(replace(made, retrieval=pd.DataFrame(cells)), tmp_path)
    assert tmp_path / "figures" / "retrieval.svg" in written
    assert "Recall of values hidden in long texts" in (tmp_path / "report.html").read_text("utf-8")
    write_analysis(made, tmp_path)
    assert not (tmp_path / "figures" / "retrieval.svg").exists()
    assert "Recall of values hidden in long texts" not in (tmp_path / "report.html").read_text("utf-8")
