"""The parent's side of a worker, with a script in the worker's place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from longshort.sweep.run.events import Event, Exit, Loading, Log
from longshort.sweep.run.process import WorkerProcess
from tests.sweep.conftest import wait_for


def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, hours: float | None = None, **environment: str
) -> WorkerProcess:
    """Run a shell script as the worker."""
    worker = tmp_path / "worker"
    worker.write_text(f"#!/bin/sh\n{script}\n")
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    return WorkerProcess("a job\n", environment, hours)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def logged(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Log))


def test_the_job_reaches_it_and_events_and_log_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'read job\necho \'{"event": "loading"}\'\necho \'half a li\'\necho "$job on $DEVICE" >&2\nexit 3'
    events = list(start(tmp_path, monkeypatch, script, DEVICE="gpu 7"))
    assert [event for event in events if not isinstance(event, Log)] == [Loading(), Exit(3)]
    assert logged(events) == "a job on gpu 7\n"


def test_when_its_hours_are_over_it_ends_though_it_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores SIGTERM, and so does its child, which holds the pipes open."""
    child, survived = tmp_path / "child", tmp_path / "survived"
    script = f"trap '' TERM\n(sleep 300; touch {survived}) & echo $! > {child}\nwhile :; do sleep 0.1; done"
    *_, last = start(tmp_path, monkeypatch, script, hours=0.3 / 3600)
    assert last == Exit(-9, "timeout")
    assert not survived.exists()  # nobody waited for the child
    wait_for(lambda: not is_alive(int(child.read_text())), 10)


def test_what_it_has_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    events = list(start(tmp_path, monkeypatch, f"sleep 300 & echo $! > {child}\necho crashed >&2\nkill -SEGV $$"))
    assert events[-1] == Exit(-11)
    wait_for(lambda: not is_alive(int(child.read_text())), 10)


def test_a_stopped_one_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(tmp_path, monkeypatch, "exec sleep 60")
    process.stop()
    assert list(process)[-1] == Exit(-15, "interrupted")
    assert not is_alive(process.pid)
    assert process.pid != os.getpid()
