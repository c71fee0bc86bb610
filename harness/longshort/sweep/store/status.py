"""The status of a sweep: which results are done, running, failed or missing."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longshort.errors import UserError
from longshort.sweep.store.failure import failure_lines
from longshort.sweep.store.folder import LOCK, STATUS, Folder


@dataclass(frozen=True)
class State:
    """The state of one checkpoint and task: done, running, failed or missing; the category and reason of a failure."""

    id: str
    checkpoint: str
    task: str
    state: str
    kind: str = ""
    message: str = ""


def states(folder: Path) -> list[State]:
    """Return the last recorded state of each checkpoint and task of the newest plan; done only if its file exists.

    A result that is no longer valid stays until there is a new one: while that is measured the task is running, and
    if it could not be measured the task has failed.

    Raises:
        UserError: no sweep was run in the folder (kind "not_found"), or its `status.jsonl` is not readable ("data").
    """
    try:
        return _states(folder, Folder(folder).events())
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON, but not as a sweep writes it
        raise UserError(
            f"{folder / STATUS} is damaged or was written by another version. Remove it and run the sweep again, which "
            "keeps the results in the folder.",
            "data",
        ) from error


def _states(folder: Path, events: Sequence[dict[str, Any]]) -> list[State]:
    plans = [event for event in events if event["event"] == "plan"]
    if not plans:
        message = f"{folder} is not a sweep folder: it has no {STATUS} with a plan. Run 'longshort sweep' first."
        raise UserError(message, "not_found")
    running = is_running(folder)
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event["event"] in ("started", "done", "failed") and "id" in event:
            last[event["id"], event["task"]] = event
    found = []
    for name, checkpoint, tasks in plans[-1]["checkpoints"]:
        for task in tasks:
            event = last.get((name, task), {})
            saved = _saved(folder / "results" / name / task)
            recorded = event.get("event") if saved is None or (event and _seconds(event) >= saved) else None
            if recorded == "failed":
                kept = "" if saved is None else " (the existing result is kept)"
                found.append(State(name, checkpoint, task, "failed", event["kind"], event["message"] + kept))
            elif recorded == "started" and running:
                found.append(State(name, checkpoint, task, "running"))
            elif saved is not None:
                found.append(State(name, checkpoint, task, "done", message="; ".join(event.get("notes") or ())))
            else:
                found.append(State(name, checkpoint, task, "missing"))
    return found


def _saved(folder: Path) -> int | None:
    """The second in which a task's result was written; None if there is none."""
    return max((int(file.stat().st_mtime) for file in folder.glob("results_*.json")), default=None)


def _seconds(event: Mapping[str, str]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def is_running(folder: Path) -> bool:
    """Return whether a sweep is running in the folder."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def show(found: list[State], console: Console) -> None:
    """Print a table of counts, then the failures grouped by category."""
    tasks = list(dict.fromkeys(state.task for state in found))
    table = Table(pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("")
    for task in tasks:
        table.add_column(task, justify="right")
    counts = Counter((state.state, state.task) for state in found)
    for name in ("done", "running", "failed", "missing"):
        table.add_row(name, *(str(counts[name, task]) for task in tasks))
    console.print(table)
    for line in failure_lines((s.checkpoint, s.task, s.kind, s.message) for s in found if s.state == "failed"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def to_json(found: list[State]) -> str:
    """Return the states as JSON, for programs."""
    return json.dumps([vars(state) for state in found], indent=2)
