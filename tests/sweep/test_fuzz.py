"""Damaged manifests, records and status files: each is read, or refused in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from longshort.errors import UserError
from longshort.sweep.manifest.expand import own_record
from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.store.status import State, states
from tests.mutations import mutated, outcome
from tests.sweep.manifests import RECORD, assert_loads_or_reports

EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MANIFEST: dict[str, Any] = {
    "description": "all fields",
    "defaults": {"corpus": "builtin", "lengths": [64, 128], "tail_tokens": 16, "dtype": "float32", "seed": 1},
    "checkpoints": [
        {
            "pretrained": "owner/name",
            "revisions": {"template": "step{}", "first": 0, "last": 4, "every": 2, "tokens_per_step": 10},
            "tasks": ["longshort_perplexity"],
            "family": "name",
            "params": 1000,
            "train_length": 64,
            "model_args": {"parallelize": True, "max_length": 100},
            "trust_remote_code": False,
            "num_docs": 3,
            "limit": 2,
            "batch_size": "auto",
            "resources": {"gpus": 1, "cpus": 2, "memory": "1GB"},
            "timeout": 1.5,
            "cpu_offload": True,
        },
        {"pretrained": "owner/other", "revisions": ["a", "b"], "lengths": "64,256", "gated": True, "license": "MIT"},
    ],
}
EVENTS = [
    {"time": "2025-01-01T00:00:00+00:00", "event": "plan", "checkpoints": [["a", "model", ["t", "u"]]]},
    {"time": "2025-01-01T00:00:01+00:00", "event": "started", "id": "a", "task": "t"},
    {"time": "2025-01-01T00:00:02+00:00", "event": "done", "id": "a", "task": "t", "notes": ["n"]},
    {
        "time": "2025-01-01T00:00:03+00:00", "event": "failed", "id": "a", "task": "u", "kind": "broken",
        "message": "why",
    },
]  # fmt: skip


@EXAMPLES
@given(content=mutated(MANIFEST))
def test_a_manifest_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        file = tmp_path / "manifest.yaml"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"manifest\.yaml") as caught:
            load_manifest(str(file))
        assert caught.value.kind == "data"
    else:
        assert_loads_or_reports(tmp_path, text)


@EXAMPLES
@given(content=mutated(RECORD))
def test_a_record_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "longshort.json").write_bytes(content)
    found, message = outcome(own_record, str(tmp_path))
    if found is None:
        assert str(tmp_path / "longshort.json") in message
    else:
        assert isinstance(found["family"], str)
        assert all(type(found[name]) is int for name in ("params", "train_tokens", "train_length"))


@EXAMPLES
@given(content=mutated(EVENTS))
def test_a_status_file_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    try:
        events = json.loads(content)
    except (ValueError, RecursionError):
        events = None
    lines = [json.dumps(event).encode() for event in events] if isinstance(events, list) else [content]
    (tmp_path / "status.jsonl").write_bytes(b"\n".join(lines))
    found, message = outcome(states, tmp_path)
    if found is None:
        assert "status.jsonl" in message
    else:
        assert all(isinstance(state, State) for state in found)
