"""The benchmark of the correlations: its two sides agree, and it would tell if they did not."""

import json
from argparse import Namespace
from importlib import import_module

import numpy as np
import pytest

from longshort.analysis.correlation import COLUMNS, correlations
from tests.analysis.results_folder import save_folder


@pytest.fixture
def benchmark():
    return import_module("benchmarks.correlate")


def test_the_loop_gives_the_same_numbers(benchmark):
    wide, predictors, outcomes = benchmark.checkpoint_table(28, 5, 3, 2)
    assert wide[outcomes[-1]].isna().any()
    loop, ours = (f(wide, predictors, outcomes, benchmark.CONTROLS) for f in (benchmark.scipy_loop, correlations))
    numbers = set(COLUMNS) - {"predictor", "outcome", "controls", "interval", "note"}
    assert set(loop) == numbers | {"predictor", "outcome"}
    count, difference = benchmark.compared(loop.to_dict("list"), ours.to_dict("list"))
    assert count == 6 * len(numbers)
    assert difference < 1e-12
    assert ours["partial"].notna().all()
    assert set(ours["controls"]) == {"nll, log_params", "log_params"}


def test_a_difference_is_found(benchmark):
    names = {"predictor": ["x"], "outcome": ["y"]}
    one = names | {"pearson": [0.5], "kendall": [np.nan]}
    assert benchmark.compared(one, one) == (2, 0)
    assert benchmark.compared(one, one | {"pearson": [0.75]}) == (2, 0.25)
    assert benchmark.compared(one, one | {"kendall": [0.5]}) == (2, np.inf)
    assert benchmark.compared(one, one | {"predictor": ["z"]})[1] == np.inf


@pytest.mark.parametrize("shift", [0.0, 1e-6])
def test_it_runs_at_a_tiny_size_and_fails_where_the_sides_differ(benchmark, monkeypatch, capsys, shift):
    def measure_here(name, arguments, side):
        result = benchmark.measure(Namespace(side=side, **arguments))
        if side == benchmark.OURS:
            result["values"]["spearman_lo"][0] += shift
        return result

    written = []
    monkeypatch.setattr(benchmark, "run_child", measure_here)
    monkeypatch.setattr(benchmark, "PAIRS", (2, 2))
    monkeypatch.setattr(benchmark, "write", lambda rows, *_: written.extend(json.loads(json.dumps(rows))))
    monkeypatch.setenv("COLUMNS", "100")
    arguments = ["--sizes", "20:5", "--runs", "2", "--no-whole"]
    if shift:
        with pytest.raises(SystemExit, match="the two sides differ by more than"):
            benchmark.main(arguments)
    else:
        benchmark.main(arguments)
    assert [(row["pairs"], row["checkpoints"]) for row in written] == [(4, 20)]
    assert all(row["seconds_ratio"] > 0 for row in written)
    shown = capsys.readouterr().out
    assert "jackknife" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_the_whole_is_measured_at_a_tiny_size(benchmark, tmp_path, monkeypatch):
    whole = benchmark.whole_analysis
    monkeypatch.setattr(whole, "FAMILIES", 5)
    monkeypatch.setattr("longshort.analysis.figures.draw_figures", lambda *_: [])  # which takes seconds
    results = save_folder(tmp_path / "results", families=4, members=2)
    command = whole.measure(whole.COMMAND, results)
    assert command["seconds"] > 0
    assert command["cpu_seconds"] > 0
    report = whole.measure(whole.REPORT, checkpoints=20)
    assert (report["checkpoints"], report["predictors"], report["outcomes"]) == (20, 12, 8)
    assert report["bytes"] > 100_000
    row = whole.summary(whole.REPORT, [report, report])
    assert row["report_cpu_seconds_median"] == report["report_cpu_seconds"]
    assert row["bytes"] == report["bytes"]
    with pytest.raises(SystemExit, match="too little memory"):
        whole.summary(whole.REPORT, [{"error": "too little memory"}])
