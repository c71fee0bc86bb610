"""The benchmarks of a sweep: scaling of the loop, and where a sweep's time goes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from benchmarks import overhead, sweep


@pytest.mark.parametrize(("side", "count"), [(sweep.PER_TASK, 6), (sweep.PER_CHECKPOINT, 3), (sweep.ONE_THREAD, 3)])
def test_the_loop_is_scaled_to_all_checkpoints(
    side: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        (tmp_path / "models" / f"model-{number:02d}").mkdir(parents=True)
    run: list[list[str]] = []

    def timed(commands: list[list[str]], folder: Path) -> dict[str, float]:
        run.extend(commands)
        return {"seconds": 1.0 * len(commands), "cpu_seconds": 2.0 * len(commands)}

    monkeypatch.setattr(sweep, "run_timed", timed)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    times = sweep.measure(argparse.Namespace(side=side, folder=tmp_path, loop=3))
    assert times == {"seconds": 4.0 * count, "cpu_seconds": 8.0 * count}
    assert len(run) == count
    assert os.environ["OMP_NUM_THREADS"] == ("1" if side == sweep.ONE_THREAD else "7")
    tasks = [command[command.index("--tasks") + 1] for command in run]
    assert sum(len(names.split(",")) for names in tasks) == 3 * len(sweep.TASKS)


def test_the_sweep_is_not_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(sweep, "run_timed", lambda commands, folder: {"seconds": 5.0, "commands": commands})
    options = argparse.Namespace(side=sweep.ONE_WORKER, folder=tmp_path, loop=3)
    times = sweep.measure(options)
    assert times["seconds"] == 5.0
    assert times["commands"][0][-2:] == ["--workers", "1"]


def arrivals(start: float) -> list[tuple[float, dict[str, object]]]:
    """A worker that imports for 4 s of 5, loads for 2, and evaluates two tasks for 10 and 6 s."""
    return [
        (start + 1, {"event": "loading"}),
        (start + 7, {"event": "loaded", "seconds": 6.0, "imports": 4.0}),
        (start + 17, {"event": "result", "task": "a", "seconds": 10.0}),
        (start + 23.5, {"event": "result", "task": "b", "seconds": 6.0}),
        (start + 24, {"event": "exit", "code": 0}),
    ]


def test_where_a_sweeps_time_goes() -> None:
    times = {"planning": 1.0, "table": 0.5, "saving": 0.2, "seconds": 49.5}
    found = overhead.parts(times, 100.0, [*arrivals(100.0), *arrivals(124.0)])
    assert {name: found[name] for name in overhead.PARTS} == pytest.approx(
        {"planning": 1.0, "start_up": 10.0, "loading": 4.0, "evaluating": 32.0, "table": 0.5, "rest": 2.0}
    )
    assert found["over_evaluating"] == pytest.approx(49.5 / 32)
    assert found["once_loaded_over_evaluating"] == pytest.approx(35.5 / 32)
    assert found["saved"] == pytest.approx(14.0)  # two more processes that start and load for 7 s
