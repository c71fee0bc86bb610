"""The simulation of a sweep: against all schedules of small cases, and from end to end."""

import json
import runpy
from datetime import datetime, timezone
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.sweep.cost import GPUS, START_UP, cost_of
from longshort.sweep.manifest import load_manifest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "simulate_sweep.py"))
makespan, scaling, recorded = SCRIPT["makespan"], SCRIPT["scaling"], SCRIPT["recorded"]
UTC = timezone.utc


def shortest(durations, workers):
    """The best of all assignments of jobs to workers."""
    best = float("inf")
    for assignment in product(range(workers), repeat=len(durations)):
        load = [0.0] * workers
        for worker, duration in zip(assignment, durations, strict=True):
            load[worker] += duration
        best = min(best, max(load))
    return best


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_the_schedule_is_near_the_best(durations, workers):
    found = makespan(sorted(durations, reverse=True), workers)
    best = shortest(durations, workers)
    assert found >= max(*durations, sum(durations) / workers, best)
    assert found <= best * (4 / 3 - 1 / (3 * workers)) + 1e-9


@pytest.mark.parametrize(
    ("durations", "workers", "hours"),
    [
        ([1, 2, 3, 4], 1, 10),
        ([4, 3, 2, 1], 2, 5),
        ([1, 2, 3, 4], 2, 6),
        ([5], 64, 5),
        ([3, 1, 1, 1], 2, 3),
        ([1, 1, 1, 3], 2, 4),
        ([5, 5, 4, 4, 3, 3, 3], 3, 11),  # Graham's worst case: 9 is possible
    ],
)
def test_each_to_the_worker_that_is_free_first(durations, workers, hours):
    assert makespan(durations, workers) == hours


def test_scaling_by_hand():
    table = scaling({"a": 3600, "b": 1800, "c": 1800}, workers=(1, 2, 64)).set_index("workers")
    assert list(table["makespan_hours"]) == pytest.approx([2, 1, 1])
    assert list(table["speed_up"]) == pytest.approx([1, 2, 2])
    assert list(table["efficiency"]) == pytest.approx([1, 1, 2 / 64])
    assert list(table["bound_hours"]) == pytest.approx([2, 1, 1])
    assert list(table["limit"]) == ["total work", "longest job", "longest job"]


def record(sweep, *events):
    """Write a status.jsonl; an event with an end, in seconds, happened then."""
    sweep.mkdir()
    lines = [
        json.dumps({"time": datetime.fromtimestamp(event.pop("end", 0), UTC).isoformat()} | event) for event in events
    ]
    (sweep / "status.jsonl").write_text("\n".join(lines) + '\n{"event": "do')


def ended(job, seconds, end):
    return {"event": "ended", "id": job, "seconds": seconds, "end": end}


def test_the_last_run_that_came_to_its_end_is_taken(tmp_path):
    record(
        tmp_path / "sweep",
        {"event": "sweep", "jobs": 1},
        ended("old", 9.0, 9),
        {"event": "finished", "seconds": 9.1, "workers": 1},
        {"event": "sweep", "jobs": 3},
        ended("b", 3.0, 24),
        ended("a", 5.0, 25),
        ended("b", 2.0, 26),  # tried again
        {"event": "finished", "seconds": 6.5, "workers": 2},
        {"event": "sweep", "jobs": 1},
        ended("c", 1.0, 90),
        {"event": "interrupted"},
    )
    found = recorded(tmp_path / "sweep")
    assert list(found.durations.items()) == [("a", 5.0), ("b", 3.0), ("b, attempt 2", 2.0)]
    assert (found.seconds, found.workers) == (6.5, 2)
    assert makespan(found.durations.values(), 2) == 5.0


def test_what_holds_no_run(tmp_path):
    record(tmp_path / "sweep", {"event": "sweep"}, {"event": "finished", "seconds": 0.1, "workers": 0})
    with pytest.raises(UserError, match=r"no worker of .* has come to its end"):
        recorded(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"holds no status\.jsonl"):
        recorded(tmp_path / "none")


MANIFEST = """
defaults: {lengths: [512, 1024], num_docs: 4}
checkpoints:
  - {pretrained: owner/model-7b, revisions: [step1, step2, step3]}
  - {pretrained: owner/model-70b, tasks: [longshort_perplexity, hellaswag]}
"""


def test_from_a_manifest(tmp_path, capsys):
    (tmp_path / "some.yaml").write_text(MANIFEST)
    arguments = ["--manifest", str(tmp_path / "some.yaml"), "--gpu", "h100", "a100", "-o", str(tmp_path / "out")]
    SCRIPT["main"](arguments)
    table = pd.read_csv(tmp_path / "out" / "scaling.csv")
    assert list(table["workers"]) == [1, 8, 64] * 2
    assert set(table["jobs"]) == {4}
    h100 = table[table["source"] == "some on h100, estimated"].set_index("workers")
    hours = [cost_of(one, one.tasks, GPUS["h100"]).hours for one in load_manifest(str(tmp_path / "some.yaml"))]
    assert h100["makespan_hours"][1] == pytest.approx(sum(hours), rel=1e-4)
    assert h100["makespan_hours"][64] == pytest.approx(max(hours), rel=1e-4)
    assert h100["limit"][64] == "longest job"
    text = (tmp_path / "out" / "scaling.md").read_text("utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    assert f"starts up for {START_UP:g} s" in text
    assert "hellaswag: its cost is not known and counts as nothing (1 of 4)" in text
    assert "the number of parameters its name claims (4 of 4)" in text


def test_from_recorded_sweeps(tmp_path, capsys):
    for workers, seconds in ((1, 7400.0), (4, 1900.0)):
        jobs = [ended(f"model-{index}", 900.0, 900 * (index // workers + 1)) for index in range(8)]
        record(tmp_path / f"by-{workers}", *jobs, {"event": "finished", "seconds": seconds, "workers": workers})
    sweeps = [str(tmp_path / f"by-{workers}") for workers in (1, 4)]
    SCRIPT["main"](["--sweep", *sweeps, "--workers", "1", "4", "8", "-o", str(tmp_path)])
    table = pd.read_csv(tmp_path / "recorded.csv").set_index(["source", "workers"])
    assert list(table.loc["by-1, recorded", "makespan_hours"]) == pytest.approx([2, 0.5, 0.25])
    assert list(table["efficiency"]) == pytest.approx([1] * 6)
    durations = pd.read_csv(tmp_path / "recorded_durations.csv")
    assert list(durations["seconds"]) == [900.0] * 16
    printed = capsys.readouterr().out
    assert "1 workers at once, took 7400.0 s; simulated for 1: 7200.0 s (0.973 ×)" in printed
    assert "4 workers at once, took 1900.0 s; simulated for 4: 1800.0 s (0.947 ×)" in printed
