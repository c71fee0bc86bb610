"""How a sweep scales: how long 1, 8 and 64 workers take over the same checkpoints.

    python scripts/simulate_sweep.py --manifest paper --gpu h100 a100 -o results/sweep_scaling
    python scripts/simulate_sweep.py --sweep longshort-sweep -o results/sweep_scaling

A job is a checkpoint with all its tasks, since a worker loads it once. Each worker takes the next job as soon as it
is free. Durations come from the estimate of `longshort.sweep.cost`, the longest first, as a sweep does it; or from
status.jsonl of sweeps that were run, in the order in which they ran, which also shows how near the simulation comes to
the time that those took. A worker has what its job asks for; two jobs never share a GPU or a core.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from longshort.errors import UserError, one_line_for_user_errors
from longshort.results import write_atomically
from longshort.sweep import cost
from longshort.sweep.manifest import load_manifest
from longshort.sweep.store import STATUS, Folder

WORKERS = (1, 8, 64)


def makespan(durations: Iterable[float], workers: int) -> float:
    """When the last job ends: in this order, each to the worker that is free first.

    With the longest first never more than 4/3 - 1/(3 · workers) times the shortest possible (Graham, 1969).
    """
    free = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def estimated(manifest: str, gpu: str) -> tuple[dict[str, float], list[str]]:
    """Seconds of each checkpoint of a manifest, the longest first, and what the estimate assumes."""
    seconds: dict[str, float] = {}
    assumed: dict[str, int] = {}
    for checkpoint in load_manifest(manifest):
        found = cost.cost_of(checkpoint, checkpoint.tasks, cost.GPUS[gpu])
        name = f"{checkpoint.name} on {checkpoint.corpus}, line {checkpoint.line}"  # two may share a name
        seconds[name] = seconds.get(name, 0.0) + found.hours * 3600
        for sentence in found.assumed:
            assumed[sentence] = assumed.get(sentence, 0) + 1
    longest_first = dict(sorted(seconds.items(), key=lambda job: job[1], reverse=True))
    return longest_first, [f"{sentence} ({count} of {len(seconds)})" for sentence, count in assumed.items()]


@dataclass(frozen=True)
class Recorded:
    """What a sweep's status.jsonl tells of its last run.

    Attributes:
        durations: seconds of each worker from its start to its end, in the order of their starts.
        seconds: of the run, planning left out.
        workers: that ran at once, at most.
    """

    durations: dict[str, float]
    seconds: float
    workers: int


def recorded(sweep: Path) -> Recorded:
    """Read the last run of a sweep that came to its end.

    Raises:
        UserError: there is none.
    """
    if not (sweep / STATUS).is_file():
        raise UserError(f"{sweep} holds no {STATUS}. Name the folder of a sweep.")
    ended: list[tuple[float, str, float]] = []  # start, job, seconds
    found = None
    for event in Folder(sweep).events():
        if event["event"] == "sweep":
            ended = []
        elif event["event"] == "ended":
            start = datetime.fromisoformat(event["time"]).timestamp() - event["seconds"]
            ended.append((start, event["id"], event["seconds"]))
        elif event["event"] == "finished" and ended:
            found = Recorded(_in_order(ended), event["seconds"], event["workers"])
    if found is None:
        raise UserError(f"no worker of {sweep} has come to its end. Run 'longshort sweep' first.")
    return found


def _in_order(ended: Sequence[tuple[float, str, float]]) -> dict[str, float]:
    """Seconds by job, as they started; a second attempt at a checkpoint is a job of its own."""
    count: dict[str, int] = {}
    durations = {}
    for _, name, seconds in sorted(ended):
        count[name] = count.get(name, 0) + 1
        durations[name if count[name] == 1 else f"{name}, attempt {count[name]}"] = seconds
    return durations


def scaling(durations: Mapping[str, float], workers: Sequence[int] = WORKERS) -> pd.DataFrame:
    """A row for each number of workers: hours, speed-up and efficiency against one, and what no order could beat."""
    seconds = list(durations.values())
    total, longest = sum(seconds), max(seconds)
    rows = []
    for count in workers:
        span = makespan(seconds, count)
        rows.append(
            {
                "workers": count,
                "jobs": len(seconds),
                "makespan_hours": span / 3600,
                "speed_up": total / span,
                "efficiency": total / span / count,
                "bound_hours": max(longest, total / count) / 3600,
                "longest_hours": longest / 3600,
                "limit": "longest job" if longest >= total / count else "total work",
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, notes: Mapping[str, Sequence[str]]) -> str:
    """A table for each source of durations, and what they rest on."""
    parts = [
        "# How a sweep scales",
        "Made by `scripts/simulate_sweep.py`: a simulation, nothing was run on that many workers. A job is a "
        "checkpoint with all its tasks, start-up and loading included; each worker takes the next as soon as it is "
        "free, and no job slows another down. Speed-up is against one worker, efficiency is speed-up per worker. No "
        "order of jobs can beat the bound: the longest job, or all work shared evenly, whichever is longer; where it "
        "is the longest job, more workers are of no use.",
    ]
    for source, rows in table.groupby("source", sort=False):
        unit, size = ("hours", 1.0) if rows["makespan_hours"].max() > 1 else ("seconds", 3600.0)
        parts.append(f"## {source}")
        longest = rows["longest_hours"].iloc[0] * size
        parts.append(f"{rows['jobs'].iloc[0]} jobs; the longest takes {longest:.2f} {unit}.")
        lines = [f"| workers | {unit} | speed-up | efficiency | bound, {unit} | set by |", "|---" * 6 + "|"]
        lines += [
            f"| {row.workers} | {row.makespan_hours * size:.2f} | {row.speed_up:.2f} | {row.efficiency:.2f} | "
            f"{row.bound_hours * size:.2f} | {row.limit} |"
            for row in rows.itertuples()
        ]
        parts.append("\n".join(lines))
        if notes.get(str(source)):
            parts.append("\n".join(f"- {note}" for note in notes[str(source)]))
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate; print the table and write it."""
    one_line_for_user_errors()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/sweep_scaling"), help="folder of the files")
    parser.add_argument("--sweep", type=Path, nargs="+", help="sweeps' folders: durations as they were")
    parser.add_argument("--manifest", nargs="+", default=["paper"], help="without a sweep: shipped names or files")
    parser.add_argument("--gpu", nargs="+", default=["h100"], choices=cost.GPUS, help="without a sweep: the card")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    options = parser.parse_args(arguments)
    if min(options.workers) < 1:
        parser.error("--workers: at least 1")

    durations: dict[str, dict[str, float]] = {}
    notes: dict[str, list[str]] = {}
    if options.sweep:
        for sweep in options.sweep:
            found = recorded(sweep)
            span = makespan(found.durations.values(), found.workers)
            source = f"{sweep.name}, recorded"
            durations[source] = found.durations
            notes[source] = [
                f"The sweep itself, {found.workers} workers at once, took {found.seconds:.1f} s; simulated for "
                f"{found.workers}: {span:.1f} s ({span / found.seconds:.3f} ×)."
            ]
    else:
        for manifest in options.manifest:
            for gpu in options.gpu:
                source = f"{Path(manifest).stem} on {gpu}, estimated"
                durations[source], assumed = estimated(manifest, gpu)
                notes[source] = [f"Assumed: {sentence}" for sentence in assumed]
                notes[source].append(f"Assumed: every job starts up for {cost.START_UP:g} s")
    table = pd.concat([scaling(jobs, options.workers).assign(source=source) for source, jobs in durations.items()])
    table.insert(0, "source", table.pop("source"))
    name = "recorded" if options.sweep else "scaling"
    if options.sweep:
        rows = [(source, job, seconds) for source, jobs in durations.items() for job, seconds in jobs.items()]
        jobs = pd.DataFrame(rows, columns=["source", "job", "seconds"])
        write_atomically(options.output / "recorded_durations.csv", jobs.to_csv(index=False))
    write_atomically(options.output / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"))
    text = markdown(table, notes)
    write_atomically(options.output / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()
