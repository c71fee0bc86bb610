"""The table of every benchmark, from its committed numbers, fits into a terminal of 80 columns."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks import (
    correlate,
    evaluate,
    growth,
    head,
    lengths,
    longbench,
    longppl,
    misalignment,
    overhead,
    perplexity,
    startup,
    sweep,
    train,
    whole_analysis,
)

RESULTS = Path(__file__).parents[2] / "results" / "benchmarks"
COLUMNS = 80
SCORING = {
    "perplexity": perplexity,
    "lengths": lengths,
    "misalignment": misalignment,
    "longppl": longppl,
    "head": head,
}
SHOW: dict[str, Callable[[dict[str, Any]], object]] = {
    "train": lambda report: train.show(report["rows"], Namespace(**report["settings"])),
    "sweep": lambda report: sweep.show(report["rows"]),
    "overhead": lambda report: overhead.show(report["rows"][0]),
    "correlate": lambda report: (
        correlate.show([row for row in report["rows"] if "what" not in row]),
        whole_analysis.show([row for row in report["rows"] if "what" in row]),
    ),
    "growth": lambda report: growth.show(report["rows"][:-1], report["rows"][-1]["exponents"]),
    "evaluate": lambda report: evaluate.show(report["rows"]),
    "longbench": lambda report: longbench.show(report["rows"][0]),
    "startup": lambda report: startup.show(report["rows"][:-1], 1e-6),
} | {
    name: lambda report, module=module: module.BENCHMARK._show(report["rows"], Namespace(**report["settings"]))
    for name, module in SCORING.items()
}
SHOW["head_bfloat16"] = lambda report: replace(head.HALF_BENCHMARK, name="head_bfloat16")._show(
    report["rows"], Namespace(**report["settings"])
)


def test_every_benchmark_with_numbers_is_here() -> None:
    assert SHOW.keys() == {file.stem for file in RESULTS.glob("*.json")} or not RESULTS.exists()


@pytest.mark.parametrize("name", SHOW)
def test_no_cell_is_cut(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not RESULTS.exists():
        pytest.skip("the results are not in the source archive")
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    report = json.loads((RESULTS / f"{name}.json").read_text())
    SHOW[name](report)
    printed = capsys.readouterr().out
    assert "…" not in printed, printed
    assert max(map(len, printed.splitlines())) <= COLUMNS


def test_rates_of_a_card_fit_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    sides = misalignment.BENCHMARK.sides
    cell = {f"{key}_{kind}": 123.4 for key in ("seconds", "others_cpu_seconds") for kind in ("median", "min", "max")}
    cell |= {"bytes_median": 2**37, "tokens/s": 123_456.0, "of rate": 0.4567}
    cell |= {f"{what} over {side}": 1.234 for what in ("time", "memory") for side in sides}
    row = {"hidden": 4096, "layers": 32, "vocabulary": 128_256, "tokens": 131_072} | dict.fromkeys(sides, cell)
    misalignment.BENCHMARK._show([row], Namespace(dtype="bfloat16"))
    printed = capsys.readouterr().out
    assert "…" not in printed, printed
    assert max(map(len, printed.splitlines())) <= COLUMNS
    assert "1.23e+05" in printed
    assert "0.457" in printed
