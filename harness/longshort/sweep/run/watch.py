"""What a person sees of a running sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table

from longshort.sweep.run.driver import Progress, Watch

SIGNS = {
    "waiting": "·",
    "loading": "loading",
    "running": "running",
    "done": "[green]done[/]",
    "failed": "[red]failed[/]",
}
ROWS_BESIDE = 6  # of the terminal, for what is not the table


@contextmanager
def watching(console: Console, hours: Mapping[str, float]) -> Iterator[Watch]:
    """A watch for `longshort.sweep.run.driver.run_plan`.

    Args:
        console: where to show it.
        hours: estimated, of each checkpoint by its name in the plan; their ratios give the time left.
    """
    if not console.is_terminal:

        def tell(progress: Progress, line: str | None) -> None:
            if line:
                console.print(f"{_counts(progress)} {line}", markup=False, highlight=False, soft_wrap=True)

        yield tell
        return

    with Live(console=console, refresh_per_second=4) as live:

        def show(progress: Progress, line: str | None) -> None:
            if line:
                live.console.print(line, markup=False, highlight=False)
            live.update(progress_table(progress, hours, max(3, console.height - ROWS_BESIDE)))

        yield show


def progress_table(progress: Progress, hours: Mapping[str, float], rows: int) -> Table:
    """Checkpoints by tasks: what runs first, then what failed, what waits, what is done."""
    tasks = list(dict.fromkeys(task for _, task in progress.states))
    by_name: dict[str, dict[str, str]] = {}
    for (name, task), state in progress.states.items():
        by_name.setdefault(name, {})[task] = state
    order = ("loading", "running", "failed", "waiting", "done")
    names = sorted(by_name, key=lambda name: min(order.index(state) for state in by_name[name].values()))
    left = time_left(progress, hours)
    title = f"{_counts(progress)} checkpoint × task" + (f", about {left} left" if left else "")
    table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("checkpoint", no_wrap=True, overflow="ellipsis")
    for task in tasks:
        table.add_column(task.removeprefix("longshort_"), no_wrap=True)
    for name in names[:rows]:
        cells = (SIGNS.get(by_name[name].get(task, ""), "") for task in tasks)
        table.add_row(progress.items[name].checkpoint.name, *cells)
    if len(names) > rows:
        table.add_row(f"and {len(names) - rows} more")
    return table


def time_left(progress: Progress, hours: Mapping[str, float]) -> str | None:
    """By the pace so far, in the plan's estimates; None before anything has finished."""
    finished = [name for name in progress.items if name in progress.seconds and not progress.unfinished(name)]
    rest = [name for name in progress.items if progress.unfinished(name)]
    known = sum(hours.get(name, 0.0) for name in finished)
    if not known or not rest:
        return None
    pace = (time.monotonic() - progress.started) / known
    return duration(pace * sum(hours.get(name, 0.0) for name in rest))


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _counts(progress: Progress) -> str:
    finished = sum(state in ("done", "failed") for state in progress.states.values())
    return f"[{finished}/{len(progress.states)}]"
