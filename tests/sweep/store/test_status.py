"""What status.jsonl records, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longshort.errors import UserError
from longshort.sweep.store.folder import Folder
from longshort.sweep.store.status import states
from tests.errors import user_error


def test_a_status_file_that_a_crash_cut_off_is_read_and_goes_on(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.record("done", task="a")
    with (tmp_path / "status.jsonl").open("a") as file:
        file.write('{"event": "fai')
    folder.record("done", task="b")
    assert [event["task"] for event in folder.events()] == ["a", "b"]
    lines = (tmp_path / "status.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["task"] == "b"


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "plan"}',
        '{"event": "plan", "checkpoints": [1, 2]}',
        '{"event": "done", "id": "a"}',
        '{"event": "failed", "id": "a", "task": "b"}',
        '{"event": "started", "id": ["a"], "task": "b"}',
    ],
)
def test_a_status_file_that_no_sweep_has_written_is_told(tmp_path: Path, line: str) -> None:
    good = '{"event": "plan", "checkpoints": [["a", "model", ["b"]]]}\n'
    (tmp_path / "status.jsonl").write_text(good)
    assert [state.state for state in states(tmp_path)] == ["missing"]
    (tmp_path / "status.jsonl").write_text(good + line + "\n")
    with pytest.raises(UserError, match=r"status\.jsonl") as raised:
        states(tmp_path)
    assert raised.value.kind == "data"


def test_a_status_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "status.jsonl").mkdir()
    with user_error("data", str(tmp_path / "status.jsonl"), "Is a directory"):
        states(tmp_path)


def test_a_folder_without_a_plan_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)) as raised:
        states(tmp_path)
    assert raised.value.kind == "not_found"
