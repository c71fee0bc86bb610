"""What the watch shows of a running sweep."""

from __future__ import annotations

import io
import re
import time

from rich.console import Console

from longshort.settings import Checkpoint
from longshort.sweep.run.progress import Progress, progress_of
from longshort.sweep.run.watch import progress_table, time_left, watching
from longshort.sweep.store.folder import slug
from longshort.sweep.store.plan import Item


def progress(*names: str) -> tuple[Progress, list[str]]:
    items = [Item(Checkpoint(f"/models/{name}"), {}, missing={"longshort_a": None, "b": None}) for name in names]
    return progress_of(items), [slug(item.checkpoint) for item in items]


def shown(running: Progress, rows: int) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=80)
    console.print(progress_table(running, {}, rows))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]  # a StringIO
    return [re.sub("[│┃]", " ", line).split() for line in lines if not re.search("[━─]", line)]


def test_running_checkpoints_come_first_and_the_rest_is_counted() -> None:
    running, (one, two, three) = progress("one", "two", "three")
    running.runs[one].states |= {"longshort_a": "done", "b": "done"}
    running.runs[three].states |= {"longshort_a": "done", "b": "running"}
    title, heading, *rows, last = shown(running, 2)
    assert title[0] == "[3/6]"
    assert heading == ["checkpoint", "a", "b"]
    assert rows == [["three", "done", "running"], ["two", "·", "·"]]
    assert last == ["and", "1", "more"]
    assert len(shown(running, 3)) == len(rows) + 3
    assert two in running.runs


def test_the_time_left_is_by_the_pace_so_far() -> None:
    running, (one, two) = progress("one", "two")
    hours = {one: 1.0, two: 3.0}
    assert time_left(running, hours) is None
    running.runs[one].states |= {"longshort_a": "done", "b": "failed"}
    running.runs[one].seconds = 60.0
    running.started = time.monotonic() - 60
    assert time_left(running, hours) == "3 min"
    running.runs[two].states |= {"longshort_a": "done", "b": "done"}
    assert time_left(running, hours) is None


def test_elsewhere_than_on_a_terminal_there_are_plain_lines() -> None:
    running, _ = progress("one")
    console = Console(file=io.StringIO(), force_terminal=False)
    with watching(console, {}) as watch:
        watch(running, None)
        watch(running, "one: [x]")
    assert console.file.getvalue() == "[0/2] one: [x]\n"  # type: ignore[attr-defined]  # a StringIO
