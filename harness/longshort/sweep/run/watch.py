"""Shows a running sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from longshort.sweep.run.progress import Progress, Watch

SIGNS = {
    "waiting": "·",
    "loading": "loading",
    "running": "running",
    "done": "[green]done[/]",
    "failed": "[red]failed[/]",
}
ORDER = ("loading", "running", "failed", "waiting", "done")
OTHER_ROWS = 6  # of the terminal, outside the table


@contextmanager
def watching(console: Console, hours: Mapping[str, float]) -> Iterator[Watch]:
    """Return a watch for `longshort.sweep.run.driver.run_plan`.

    Args:
        hours: estimate for each checkpoint by its name in the plan; their ratios give the remaining time.
    """
    if not console.is_terminal:

        def print_line(progress: Progress, line: str | None) -> None:
            if line:
                console.print(f"{_counts(progress)} {line}", markup=False, highlight=False, soft_wrap=True)

        yield print_line
        return

    with Live(console=console, refresh_per_second=4) as live:

        def show(progress: Progress, line: str | None) -> None:
            if line:
                live.console.print(line, markup=False, highlight=False)
            live.update(progress_table(progress, hours, max(3, console.height - OTHER_ROWS)))

        yield show


def progress_table(progress: Progress, hours: Mapping[str, float], rows: int) -> Table:
    """Return a table of checkpoints by tasks: the running ones first, then failed, waiting and done ones."""
    runs = sorted(progress.runs.values(), key=lambda run: min(map(ORDER.index, run.states.values())))
    tasks = list(dict.fromkeys(task for run in progress.runs.values() for task in run.states))
    left = time_left(progress, hours)
    title = f"{_counts(progress)} checkpoint × task" + (f", about {left} left" if left else "")
    table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("checkpoint", no_wrap=True, overflow="ellipsis")
    for task in tasks:
        table.add_column(task.removeprefix("longshort_"), no_wrap=True)
    for run in runs[:rows]:
        table.add_row(run.item.checkpoint.name, *(SIGNS.get(run.states.get(task, ""), "") for task in tasks))
    if len(runs) > rows:
        table.add_row(f"and {len(runs) - rows} more")
    return table


def time_left(progress: Progress, hours: Mapping[str, float]) -> str | None:
    """Return the remaining time at the pace so far; None before anything has finished."""
    finished = [name for name, run in progress.runs.items() if run.seconds is not None and not run.unfinished]
    rest = [name for name, run in progress.runs.items() if run.unfinished]
    known = sum(hours.get(name, 0.0) for name in finished)
    if not known or not rest:
        return None
    pace = (time.monotonic() - progress.started) / known
    return duration(pace * sum(hours.get(name, 0.0) for name in rest))


def duration(seconds: float) -> str:
    """Return a duration in a readable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counts(progress: Progress) -> str:
    states = list(progress.states.values())
    return f"[{sum(state in ('done', 'failed') for state in states)}/{len(states)}]"
