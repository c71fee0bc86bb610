"""Events as lines between processes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from longshort.sweep.run.events import (
    Event,
    Exit,
    Failed,
    Loaded,
    Loading,
    Log,
    Note,
    Result,
    Started,
    TokenPart,
    TokensSent,
    parse,
    to_line,
)

# As versions before wrote them.
LINES: list[tuple[dict[str, Any], Event]] = [
    ({"event": "loading"}, Loading()),
    ({"event": "loaded", "seconds": 2.5, "imports": 1.5}, Loaded(2.5, 1.5)),
    ({"event": "started", "task": "a"}, Started("a")),
    ({"event": "result", "task": "a", "seconds": 1.5, "text": "{}", "notes": ["n"]}, Result("a", 1.5, "{}", ["n"])),
    ({"event": "tokenpart", "data": "eA=="}, TokenPart("eA==")),
    ({"event": "tokenssent", "rows": 3, "sha256": "ab"}, TokensSent(3, "ab")),
    ({"event": "failed", "task": None, "kind": "hub", "message": "m"}, Failed("hub", "m")),
    ({"event": "failed", "task": "a", "kind": "hub", "message": "m"}, Failed("hub", "m", "a")),
    ({"event": "log", "text": "x"}, Log("x")),
    ({"event": "note", "message": "x"}, Note("x")),
    ({"event": "exit", "code": -9, "stopped": "timeout", "message": None}, Exit(-9, "timeout")),
]


@pytest.mark.parametrize(("values", "event"), LINES)
def test_an_event_is_a_line_of_json(values: dict[str, Any], event: Event) -> None:
    assert parse(json.dumps(values)) == event
    assert json.loads(to_line(event)) == values
    assert to_line(event).endswith("\n")
    assert parse(to_line(event).encode()) == event


@pytest.mark.parametrize(
    "line", ["", '{"event": "load', "[1]", "3", "{}", '{"event": "other"}', '{"event": "started"}', '{"event": []}']
)
def test_what_is_not_an_event_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError, match=r"not an event|Expecting|Unterminated"):
        parse(line)
