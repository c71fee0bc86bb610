"""The simulation of a sweep: against all schedules of small cases, and from end to end."""

import json
import runpy
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
    found = makespan(durations, workers)
    best = shortest(durations, workers)
    assert found >= max(*durations, sum(durations) / workers, best)
    assert found <= best * (4 / 3 - 1 / (3 * workers)) + 1e-9


@pytest.mark.parametrize(
    ("durations", "workers", "hours"),
    [
        ([1, 2, 3, 4], 1, 10),
        ([1, 2, 3, 4], 2, 5),
        ([5], 64, 5),
        ([3, 1, 1, 1], 2, 3),  # first come, first served in reverse would take 4
        ([5, 5, 4, 4, 3, 3, 3], 3, 11),  # Graham's worst case: 9 is possible
    ],
)
def test_longest_first(durations, workers, hours):
    assert makespan(durations, workers) == hours


def test_scaling_by_hand():
    table = scaling({"a": 3540, "b": 1740, "c": 1740}, start_up=60, workers=(1, 2, 64)).set_index("workers")
    assert list(table["makespan_hours"]) == pytest.approx([2, 1, 1])
    assert list(table["speed_up"]) == pytest.approx([1, 2, 2])
    assert list(table["efficiency"]) == pytest.approx([1, 1, 2 / 64])
    assert list(table["bound_hours"]) == pytest.approx([2, 1, 1])
    assert list(table["limit"]) == ["total work", "longest job", "longest job"]


def test_recorded_durations():
    events = [
        {"event": "loaded", "checkpoint": "a", "seconds": 10.0},
        {"event": "done", "checkpoint": "a", "task": "one", "seconds": 5.0},
        {"event": "done", "checkpoint": "a", "task": "two", "seconds": 7},
        {"event": "failed", "checkpoint": "b", "task": "one"},
        {"event": "loaded", "checkpoint": "b", "seconds": 3.0},
        {"event": "started", "checkpoint": "a", "task": "one"},
        {"event": "loaded", "checkpoint": "a", "seconds": 20.0},  # again, with other settings
        {"event": "done", "checkpoint": "a", "task": "one", "seconds": 6.0},
        {"event": "done", "checkpoint": "a", "id": "a-on-pg19", "task": "one", "seconds": 1.0},
        {"event": "done", "checkpoint": "c", "task": "one"},
    ]
    assert recorded(events) == {"a": 20 + 6 + 7, "a-on-pg19": 20 + 1}
    with pytest.raises(UserError, match="no task was done"):
        recorded(events[3:6])


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


def test_from_a_recorded_sweep(tmp_path):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    events = [
        {"event": kind, "checkpoint": f"model-{index}", "seconds": 895.0, "task": "one"}
        for index in range(8)
        for kind in ("done", "loaded")
    ]
    (sweep / "status.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + '{"event": "do')
    SCRIPT["main"](["--sweep", str(sweep), "--workers", "1", "4", "8", "--start-up", "10", "-o", str(tmp_path)])
    table = pd.read_csv(tmp_path / "scaling.csv").set_index("workers")
    assert list(table["makespan_hours"]) == pytest.approx([4, 1, 0.5])
    assert list(table["efficiency"]) == pytest.approx([1, 1, 1])
    with pytest.raises(UserError, match=r"holds no status\.jsonl"):
        SCRIPT["main"](["--sweep", str(tmp_path / "none"), "-o", str(tmp_path)])
