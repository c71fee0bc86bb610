"""The kinds of failures, told apart by what libraries raise."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import errors

from longshort.errors import UserError
from longshort.sweep.run.failures import KINDS, classify, lacking
from longshort.sweep.store.folder import Folder
from longshort.sweep.store.status import failure_lines, states

RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=401)  # the client's HTTP library varies
TransportError = type("TransportError", (Exception,), {})  # as the base of its ConnectError is called


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("out of memory at 64 tokens", "out_of_memory"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (
            caused(UserError("checkpoint 'a' cannot be loaded: no"), errors.GatedRepoError("no", response=RESPONSE)),
            "gated",
        ),
        (caused(OSError("x"), errors.RepositoryNotFoundError("no", response=RESPONSE)), "not_found"),
        (caused(OSError("x"), errors.RevisionNotFoundError("no", response=RESPONSE)), "not_found"),
        (caused(OSError("x"), errors.LocalEntryNotFoundError("no")), "hub"),
        (caused(UserError("corpus 'hf:a/b': no"), TransportError("no")), "hub"),
        (errors.OfflineModeIsEnabled("offline"), "hub"),
        (ValueError("Please pass the argument `trust_remote_code=True` to allow custom code."), "no_trust_remote_code"),
        (UserError("checkpoint './x': no such folder. Name one."), "not_found"),
        (UserError("checkpoint 'x' cannot be loaded: what"), "broken"),
        (UserError("checkpoint 'x' lacks 1 of its weights, as lm_head: they would be random."), "broken"),
        (UserError("task 'x' is not known"), "setting"),
        (ZeroDivisionError("division by zero"), "error"),
    ],
)
def test_kinds(error: Exception, kind: str) -> None:
    failure = classify(error)
    assert failure.kind == kind
    assert failure.kind in KINDS
    assert "\n" not in failure.message
    assert failure.message


def lacking_for(*reasons: str, **values: float) -> Any:
    scored = {"left_out": [{"metric": "ppl@8", "reason": reason} for reason in reasons]}
    data = {"results": {"t": values | {"alias": "t"}}, "configs": {"t": {"metadata": {"scored": scored}}}}
    return lacking(data, "t")


def test_why_nothing_could_be_measured() -> None:
    assert lacking_for("beyond the 64 positions the model can address").kind == "length"
    assert lacking_for("non-finite logits").kind == "non_finite"
    assert lacking_for("document too short").kind == "text"
    assert lacking_for("document too short", "non-finite logits").kind == "error"
    assert lacking_for("non-finite logits", **{"ppl@8,none": 1.0}) is None


def test_failures_are_told_by_kind() -> None:
    rows = [("m", "a", "broken", "why"), ("m", "b", "broken", "why"), ("n", "a", "gated", "ask")]
    assert failure_lines(iter(rows)) == [
        f"broken: {KINDS['broken']}",
        "  m (a, b): why",
        f"gated: {KINDS['gated']}",
        "  n (a): ask",
    ]


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
    with pytest.raises(UserError, match=r"status\.jsonl is damaged or not of this version\. Remove it and run"):
        states(tmp_path)


def test_a_status_file_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "status.jsonl").mkdir()
    with pytest.raises(UserError, match=r"status\.jsonl cannot be read: Is a directory"):
        states(tmp_path)
