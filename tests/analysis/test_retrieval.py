"""Recall by length and depth, from results files to a figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from longshort.analysis import analyze
from longshort.analysis.figures.retrieval import heat_maps
from longshort.analysis.retrieval import COLUMNS, cells
from longshort.analysis.write import write_analysis
from longshort.results import read_results
from tests.errors import assert_one, user_error

TASK = "longshort_retrieval"


def depth_cells(recall: float, lengths: tuple[int, ...] = (64, 128)) -> list[dict[str, float]]:
    return [
        {"length": length, "depth": depth, "recall": recall, "recall_nll": 2.0, "n": 4}
        for length in lengths
        for depth in (0.0, 0.5, 1.0)
    ]


def save_results(folder: Path, name: str, depths: Any, date: int = 1, corpus: str = "books") -> Path:
    metadata = {"corpus": corpus, "lengths": [64, 128], "train_length": 64, "scored": {"depths": depths}}
    results = {"recall@64,none": 0.5, "recall@128,none": 0.25, "recall@64_stderr,none": 0.1}
    content = {
        "results": {TASK: results},
        "configs": {TASK: {"metadata": metadata}},
        "config": {"model_args": {"pretrained": name}},
        "date": date,
    }
    file = folder / f"results_{name}_{date}.json"
    file.write_text(json.dumps(content))
    return file


def test_cells_are_those_of_the_results_and_the_newest_count(tmp_path: Path) -> None:
    save_results(tmp_path, "one", depth_cells(0.5), date=2)
    save_results(tmp_path, "one", depth_cells(0.25), date=1)
    save_results(tmp_path, "two", depth_cells(0.75))
    table = cells(sorted(tmp_path.glob("*.json")))
    assert list(table) == list(COLUMNS)
    assert len(table) == 12
    assert dict(table.groupby("checkpoint")["recall"].unique().map(list)) == {"one": [0.5], "two": [0.75]}
    assert set(table["n"]) == {4}
    tidy = read_results(tmp_path)
    row = tidy[(tidy["metric"] == "recall") & (tidy["length"] == 64) & (tidy["checkpoint"] == "one")].iloc[0]
    assert (row["value"], row["stderr"], row["task"]) == (0.5, 0.1, TASK)


def test_depths_of_an_earlier_result_are_not_mixed_in(tmp_path: Path) -> None:
    five = [{"length": 64, "depth": depth, "recall": 1.0, "recall_nll": 0.1, "n": 4} for depth in (0, 0.25, 0.75, 1)]
    earlier = save_results(tmp_path, "one", [*five, *depth_cells(1.0, lengths=(256,))], date=1)
    later = save_results(tmp_path, "one", depth_cells(0.5), date=2)
    table = cells([later, earlier])
    assert list(table.loc[table["length"] == 64, "depth"]) == [0.0, 0.5, 1.0]
    assert dict(table.groupby("length")["recall"].unique().map(list)) == {64: [0.5], 128: [0.5], 256: [1.0]}


@pytest.mark.parametrize("damaged", [{"length": "x"}, {"depth": None}, {"recall": float("nan")}, {"n": 1.5}])
def test_damaged_cells_are_skipped_with_a_note(damaged: dict[str, Any], tmp_path: Path, caplog: Any) -> None:
    depths = depth_cells(0.5)
    depths[1] |= damaged
    file = save_results(tmp_path, "one", [*depths, "nothing"])
    assert len(cells([file])) == 5
    read_results(tmp_path)
    assert_one(caplog.messages, file.name, 2, TASK)


def test_results_without_depths_have_no_cells(tmp_path: Path) -> None:
    assert cells([save_results(tmp_path, "one", [])]).empty
    with user_error("data"):
        heat_maps(cells([save_results(tmp_path, "one", [])]), tmp_path / "figure")


def test_a_heat_map_shows_every_value_and_every_checkpoint(tmp_path: Path) -> None:
    table = pd.concat(
        cells([save_results(tmp_path, name, depth_cells(recall))]) for name, recall in (("one", 0.17), ("two", 0.83))
    )
    file = heat_maps(table.iloc[1:], tmp_path / "figure.svg")
    texts = [text.text or "" for text in ElementTree.parse(file).iter("{http://www.w3.org/2000/svg}text")]
    assert (texts.count("0.17"), texts.count("0.83")) == (5, 6)  # one was left out
    assert {"one", "two", "64", "128", "0%", "50%", "100%"} <= set(texts)
    assert any("4 probes" in text for text in texts)


def test_the_analysis_draws_it(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for index in range(3):
        save_results(folder, f"model{index}", depth_cells(index / 3))
        save_perplexity(folder, f"model{index}")
    analysis = analyze(folder)
    assert set(analysis.retrieval["checkpoint"]) == {"model0", "model1", "model2"}
    assert len(analyze(folder, where="checkpoint != 'model1'").retrieval) == 12
    written = write_analysis(analysis, tmp_path / "out")
    assert any(file.stem == "retrieval" and file.parent.name == "figures" for file in written)


def save_perplexity(folder: Path, name: str) -> None:
    content = {
        "results": {"longshort_perplexity": {"ppl@64,none": 9.0, "ppl@128,none": 8.0}},
        "configs": {"longshort_perplexity": {"metadata": {"corpus": "books", "train_length": 64}}},
        "config": {"model_args": {"pretrained": name}},
        "date": 1,
    }
    (folder / f"results_{name}_ppl.json").write_text(json.dumps(content))
