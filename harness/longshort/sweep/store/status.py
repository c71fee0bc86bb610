"""What a sweep folder holds: done, running, failed, missing."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longshort.errors import UserError
from longshort.sweep.run.failures import KINDS
from longshort.sweep.store.folder import LOCK, STATUS, Folder


@dataclass(frozen=True)
class State:
    """Of one checkpoint and task: done, running, failed, missing; with what to know of it."""

    id: str
    checkpoint: str
    task: str
    state: str
    kind: str = ""
    message: str = ""


def states(folder: Path) -> list[State]:
    """The last that `status.jsonl` tells of each checkpoint and task of the newest plan; done only with its file.

    A result that no longer holds stays until there is a new one: while that is measured the task is running, and if
    it could not be measured it has failed.

    Raises:
        UserError: no sweep was run in the folder, or its `status.jsonl` cannot be read.
    """
    try:
        return _states(folder, Folder(folder).events())
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON, but not as a sweep writes it
        raise UserError(
            f"{folder / STATUS} is damaged or not of this version. Remove it and run the sweep again: it keeps the "
            "results that are there."
        ) from error


def _states(folder: Path, events: Sequence[dict[str, Any]]) -> list[State]:
    plans = [event for event in events if event["event"] == "plan"]
    if not plans:
        raise UserError(f"{folder} is no sweep folder: there is no {STATUS} with a plan in it. Run 'longshort sweep'.")
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
            told = event.get("event") if saved is None or (event and _seconds(event) >= saved) else None
            if told == "failed":
                kept = "" if saved is None else " (a result of other settings or weights is still there)"
                found.append(State(name, checkpoint, task, "failed", event["kind"], event["message"] + kept))
            elif told == "started" and running:
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
    """Whether a sweep works in the folder now."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def show(found: list[State], console: Console) -> None:
    """Print a table of counts, then what failed and what helps."""
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


def failure_lines(failures: Iterator[tuple[str, str, str, str]]) -> list[str]:
    """By kind: what it means and helps, then whom it befell."""
    by_kind: dict[str, dict[tuple[str, str], list[str]]] = {}
    for checkpoint, task, kind, message in failures:
        by_kind.setdefault(kind, {}).setdefault((checkpoint, message), []).append(task)
    lines = []
    for kind, of_kind in by_kind.items():
        lines.append(f"{kind}: {KINDS.get(kind, KINDS['error'])}")
        lines += [f"  {checkpoint} ({', '.join(tasks)}): {message}" for (checkpoint, message), tasks in of_kind.items()]
    return lines


def to_json(found: list[State]) -> str:
    """For programs."""
    return json.dumps([vars(state) for state in found], indent=2)
