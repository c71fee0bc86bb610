"""The benchmark of whole commands: what it times, what it compares, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import commands, startup

from longshort.testing import save_sized_checkpoint
from longshort.training.byte_tokenizer import byte_tokenizer

BUSY = "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(0.3)"


def test_the_clock_and_the_processor_of_whole_processes(tmp_path: Path) -> None:
    times = commands.run_timed([["-c", BUSY], ["-c", BUSY]], tmp_path)
    assert times["seconds"] > 1.2
    assert 0.6 <= times["cpu_seconds"] < times["seconds"]


def test_a_failing_command_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"sys.exit\(3\).*told"):
        commands.run_timed([["-c", "import sys; print('told', file=sys.stderr); sys.exit(3)"]], tmp_path)


def test_the_bare_program_reads_a_checkpoint(tmp_path: Path) -> None:
    save_sized_checkpoint(tmp_path / "model", byte_tokenizer(), "llama", 0, hidden=8, layers=1, positions=256)
    assert commands.run_timed([["-c", startup.BARE_PROGRAM, "model"]], tmp_path)["cpu_seconds"] > 0


def result(folder: Path, **metrics: object) -> None:
    folder.mkdir(parents=True)
    data = {"config": {"model_args": {"pretrained": "/some/model"}}, "results": {"task": {"alias": "task"} | metrics}}
    (folder / "results_1.json").write_text(json.dumps(data))


def test_values_and_standard_errors_are_compared(tmp_path: Path) -> None:
    result(tmp_path / "ours" / "deep", **{"ppl,none": 4.0, "ppl_stderr,none": 0.5, "bpb,none": 2.0, "new,none": "N/A"})
    result(tmp_path / "other", **{"ppl,none": 4.0, "ppl_stderr,none": 0.4, "bpb,none": 2.0})
    ours, other = commands.values_in(tmp_path / "ours"), commands.values_in(tmp_path / "other")
    assert ours == {"model task ppl,none": 4.0, "model task ppl_stderr,none": 0.5, "model task bpb,none": 2.0}
    assert commands.greatest_difference(ours, other) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"\b1\b"):
        commands.greatest_difference({"model task ppl,none": 4.0, "model task bpb,none": 2.0}, other)
    with pytest.raises(ValueError, match="0 values"):
        commands.greatest_difference(ours, {})


def test_ratios_are_of_neighbouring_runs() -> None:
    seconds = {startup.STOCK: [12, 10, 14], startup.OURS: [3, 5, 4], startup.BARE: [4, 4, 5], "bare, no gc": [3, 4, 4]}
    sides = {
        side: [{"seconds": value, "cpu_seconds": value / 2} for value in values] for side, values in seconds.items()
    }
    row = next(row for row in startup.summary(sides) if row["what"] == startup.OURS)
    assert (row["seconds_median"], row["seconds_min"], row["cpu_seconds_max"]) == (4, 3, 2.5)
    assert row[f"over {startup.STOCK}"] == pytest.approx(4 / 14)  # of 3/12, 5/10, 4/14
    assert row[f"over {startup.BARE}"] == pytest.approx(0.8)  # of 3/4, 5/4, 4/5
