"""The judge of the kill campaign: it finds each fault that it looks for, and the processes that it may kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longshort.sweep.store.folder import Folder
from tests.slow.kills.kill import MARK, Process, Run, measured_again, numbers, processes, victims
from tests.sweep.conftest import wait_for


def save(folder: Path, name: str, content: object, file: str = "results_a.json") -> None:
    path = folder / "results" / name / "task" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_numbers_are_those_of_the_files_digit_by_digit(tmp_path: Path) -> None:
    save(tmp_path, "m", {"results": {"task": {"ppl,none": 0.1 + 0.2}}, "date": 1})
    assert numbers(tmp_path) == ({"m/task": '{"task": {"ppl,none": 0.30000000000000004}}'}, [])


@pytest.mark.parametrize(
    ("content", "file", "fault"),
    [
        ({"results": {}}, "results_b.json", "two results of m/task"),
        ('{"results": {', "results_a.json", "m/task: half-written or damaged"),
        ("", ".0123.tmp", "left over: .0123.tmp"),
        ({"results": {}}, "outdated_b.json", "left over: outdated_b.json"),
    ],
)
def test_what_a_kill_may_leave_is_a_fault(tmp_path: Path, content: object, file: str, fault: str) -> None:
    save(tmp_path, "m", {"results": {}})
    save(tmp_path, "m", content, file)
    (found,) = numbers(tmp_path)[1]
    assert found.startswith(fault)


def test_what_is_measured_again_though_it_was_saved_is_a_fault(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for event, task in (("started", "a"), ("done", "a"), ("started", "b"), ("started", "c")):
        folder.record(event, id="m", task=task)
    assert measured_again(tmp_path, {"m/a"}, 4) == []
    folder.record("started", id="m", task="c")  # it was not saved when the kill came
    folder.record("done", id="m", task="c")
    folder.record("started", id="m", task="b")  # its file was there, though not the event
    assert measured_again(tmp_path, {"m/a", "m/b"}, 4) == ["m/b started again though saved"]
    folder.record("done", id="m", task="a")
    assert measured_again(tmp_path, {"m/a"}, 4) == ["m/a done again though saved"]


@pytest.fixture
def marked() -> Iterator[subprocess.Popen[bytes]]:
    """A process that carries a mark, with a child that does not."""
    command = [sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'], env={})"]
    process = subprocess.Popen(command, env=os.environ | {MARK: "mine"}, start_new_session=True)
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def test_processes_are_found_by_mark_and_descent_and_no_others(marked: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: len(processes("mine", ())) == 2, 20)
    found = processes("mine", ())
    children = [process for process in found.values() if process.parent == marked.pid]
    assert [process.command for process in children] == ["sleep 60"]
    assert {number for number, _ in found} == {marked.pid, children[0].identity[0]}
    assert processes("another", ()) == {}
    assert set(processes("another", {children[0].identity})) == {children[0].identity}
    assert processes("another", {(children[0].identity[0], 1)}) == {}  # the number came back for another process


def test_a_kill_hits_what_it_is_named_after(marked: subprocess.Popen[bytes]) -> None:
    commands = {
        marked.pid: "python -m longshort sweep",
        2: "python -m longshort.sweep.run.worker",
        3: "python -m longshort.sweep.run.worker",  # forked by the first
        4: "ray::run_worker",
        5: "ray::IDLE",
        6: "/x/gcs_server --a",
        7: "/x/raylet/raylet --b",
    }
    parents = {2: marked.pid, 3: 2}
    run = Run(marked, "mine")
    run.alive = {(n, 0): Process((n, 0), parents.get(n, 1), command) for n, command in commands.items()}
    expected = {"driver": [marked.pid], "worker": [2], "Ray task": [4], "Ray head": [6, 7]}
    for kind, hit in expected.items():
        assert [process.identity[0] for process in victims(run, kind)] == hit
