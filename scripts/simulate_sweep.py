"""How a sweep scales: how long 1, 8 and 64 workers take over the same checkpoints.

    python scripts/simulate_sweep.py --manifest paper --gpu h100 a100 -o results/sweep_scaling
    python scripts/simulate_sweep.py --sweep longshort-sweep -o /tmp/scaling

A job is a checkpoint with all its tasks, since a worker loads it once. The longest goes first, and each worker takes
the next job as soon as it is free, as the sweep does it. Durations come from a sweep's status.jsonl or, without one,
from the estimate of `longshort.sweep.cost`. A worker has what its job asks for; two jobs never share a GPU.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from longshort.errors import UserError, one_line_for_user_errors
from longshort.results import write_atomically
from longshort.sweep import cost
from longshort.sweep.manifest import load_manifest
from longshort.sweep.store import STATUS, Folder

WORKERS = (1, 8, 64)
START_UP_RECORDED = 5.0  # seconds until a worker begins to load, which is where the recorded times begin


def makespan(durations: Iterable[float], workers: int) -> float:
    """When the last job ends: longest first, each to the worker that is free first.

    Never more than 4/3 - 1/(3 · workers) times the shortest possible (Graham, 1969).
    """
    free = [0.0] * workers
    for duration in sorted(durations, reverse=True):
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def estimated(manifest: str, gpu: str) -> tuple[dict[str, float], list[str]]:
    """Seconds of each checkpoint of a manifest, without start-up, and what the estimate assumes."""
    seconds: dict[str, float] = {}
    assumed: dict[str, int] = {}
    for checkpoint in load_manifest(manifest):
        found = cost.cost_of(checkpoint, checkpoint.tasks, cost.GPUS[gpu])
        name = f"{checkpoint.name} on {checkpoint.corpus}, line {checkpoint.line}"  # two may share a name
        seconds[name] = seconds.get(name, 0.0) + found.hours * 3600 - cost.START_UP
        for sentence in found.assumed:
            assumed[sentence] = assumed.get(sentence, 0) + 1
    return seconds, [f"{sentence} ({count} of {len(seconds)})" for sentence, count in assumed.items()]


def recorded(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each checkpoint that a sweep has done: its loading and, of every task, the last time it was done.

    Raises:
        UserError: no task was done.
    """
    loading: dict[str, float] = {}
    tasks: dict[tuple[str, str], dict[str, float]] = {}
    for event in events:
        name, seconds = str(event.get("checkpoint")), event.get("seconds")
        if not isinstance(seconds, int | float):
            continue
        if event.get("event") == "loaded":
            loading[name] = float(seconds)
        elif event.get("event") == "done":  # the same checkpoint on another corpus has another id
            tasks.setdefault((name, str(event.get("id", name))), {})[str(event.get("task"))] = float(seconds)
    if not tasks:
        raise UserError("no task was done in this sweep. Name a folder with a status.jsonl that tells of some.")
    return {job: loading.get(name, 0.0) + sum(done.values()) for (name, job), done in tasks.items()}


def scaling(durations: Mapping[str, float], start_up: float, workers: Sequence[int] = WORKERS) -> pd.DataFrame:
    """A row for each number of workers: hours, speed-up and efficiency against one, and what no order could beat."""
    whole = [seconds + start_up for seconds in durations.values()]
    total, longest = sum(whole), max(whole)
    rows = []
    for count in workers:
        span = makespan(whole, count)
        rows.append(
            {
                "workers": count,
                "jobs": len(whole),
                "makespan_hours": span / 3600,
                "speed_up": total / span,
                "efficiency": total / span / count,
                "bound_hours": max(longest, total / count) / 3600,
                "longest_hours": longest / 3600,
                "limit": "longest job" if longest >= total / count else "total work",
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, start_up: float, notes: Mapping[str, Sequence[str]]) -> str:
    """A table for each source of durations, and what they rest on."""
    parts = [
        "# How a sweep scales",
        "Made by `scripts/simulate_sweep.py`: a simulation, nothing was run on that many workers. A job is a "
        "checkpoint with all its tasks, the longest goes first, each worker takes the next as soon as it is free. "
        f"Every job starts up for {start_up:g} s. Speed-up is against one worker, efficiency is speed-up per worker. "
        "No order of jobs can beat the bound: the longest job, or all work shared evenly, whichever is longer; where "
        "it is the longest job, more workers are of no use.",
    ]
    for source, rows in table.groupby("source", sort=False):
        longest = rows["longest_hours"].iloc[0]
        parts.append(f"## {source}")
        parts.append(f"{rows['jobs'].iloc[0]} jobs; the longest takes {longest:.2f} hours.")
        lines = ["| workers | hours | speed-up | efficiency | bound, hours | set by |", "|---" * 6 + "|"]
        lines += [
            f"| {row.workers} | {row.makespan_hours:.2f} | {row.speed_up:.2f} | {row.efficiency:.2f} | "
            f"{row.bound_hours:.2f} | {row.limit} |"
            for row in rows.itertuples()
        ]
        parts.append("\n".join(lines))
        if notes.get(str(source)):
            parts.append("Assumed, in so many jobs:\n\n" + "\n".join(f"- {note}" for note in notes[str(source)]))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate; print the table and write it."""
    one_line_for_user_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/sweep_scaling"), help="folder of the files")
    parser.add_argument("--sweep", type=Path, help="a sweep's folder: durations as they were")
    parser.add_argument("--manifest", nargs="+", default=["paper"], help="without a sweep: shipped names or files")
    parser.add_argument("--gpu", nargs="+", default=["h100"], choices=cost.GPUS, help="without a sweep: the card")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    parser.add_argument(
        "--start-up",
        type=float,
        help=f"seconds of each job; {cost.START_UP:g} of an estimate, {START_UP_RECORDED:g} of a recorded sweep",
    )
    options = parser.parse_args(arguments)
    if min(options.workers) < 1:
        parser.error("--workers: at least 1")

    durations: dict[str, dict[str, float]] = {}
    notes: dict[str, list[str]] = {}
    if options.sweep:
        if not (options.sweep / STATUS).is_file():
            raise UserError(f"{options.sweep} holds no {STATUS}. Name the folder of a sweep.")
        durations[f"sweep {options.sweep.name}, as recorded"] = recorded(Folder(options.sweep).events())
    else:
        for manifest in options.manifest:
            for gpu in options.gpu:
                source = f"{Path(manifest).stem} on {gpu}, estimated"
                durations[source], notes[source] = estimated(manifest, gpu)
    usual = START_UP_RECORDED if options.sweep else cost.START_UP
    start_up = usual if options.start_up is None else options.start_up
    table = pd.concat(
        [scaling(jobs, start_up, options.workers).assign(source=source) for source, jobs in durations.items()]
    )
    table.insert(0, "source", table.pop("source"))
    text = markdown(table, start_up, notes)
    write_atomically(options.output / "scaling.csv", table.to_csv(index=False, float_format="%.6g"))
    write_atomically(options.output / "scaling.md", text)
    print(text)


if __name__ == "__main__":
    main()
