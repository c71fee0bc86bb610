"""What a sweep takes beside its evaluations: three checkpoints of a few megabytes, two tasks, one worker.

The driver runs in a process of its own with an engine that notes when each of the worker's events arrives. Evaluating
is what the worker tells of each task: reading documents, scoring, standard errors, the text of the result. Saving goes
on beside the next task, except after a checkpoint's last. Loading is done once per checkpoint; `saved` is what loading
once per task, in a process of its own, would have added.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import parser, run_child, spread, take_turns, write
from longshort.testing import save_letters, save_sized_checkpoint
from longshort.training.byte_tokenizer import byte_tokenizer

SIDE = "longshort sweep --workers 1"
LENGTHS = (256, 512, 1024)
PARTS = ("planning", "start_up", "loading", "evaluating", "table", "rest")
SHAPE = ("checkpoints", "vocabulary", "hidden", "layers", "documents")

Arrivals = Sequence[tuple[float, dict[str, Any]]]  # monotonic seconds, a worker's event


def main(arguments: list[str]) -> None:
    """Run the sweep a few times, print where its time goes, write the JSON."""
    command = parser("overhead", __doc__, [SIDE], of="sweeps")
    command.add_argument("--checkpoints", type=int, default=3)
    command.add_argument("--vocabulary", type=int, default=16_384)
    command.add_argument("--hidden", type=int, default=256)
    command.add_argument("--layers", type=int, default=4)
    command.add_argument("--documents", type=int, default=8)
    command.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the one sweep in a child
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_letters(folder / "text.jsonl", options.documents, 10 * max(LENGTHS))
        for seed in range(options.checkpoints):
            shape = {name: getattr(options, name) for name in ("vocabulary", "hidden", "layers")}
            model = folder / "models" / f"llama-{seed}"
            save_sized_checkpoint(model, byte_tokenizer(), "llama", seed, positions=2 * max(LENGTHS), **shape)
        (folder / "manifest.yaml").write_text(
            f"defaults: {{corpus: text.jsonl, lengths: {list(LENGTHS)}, num_docs: {options.documents}, dtype: float32,"
            " resources: {cpus: 2}}\ncheckpoints:\n  - {folders: models/*}\n"
        )
        runs = take_turns([SIDE], options.runs, partial(run_child, "overhead", {"folder": folder}))[SIDE]
    row = summary(runs)
    show(row)
    write([row], options, (*SHAPE, "runs"))


class Noting:
    """An engine whose events are noted as they arrive."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.arrivals = engine, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def events(self, seconds: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """The engine's own."""
        for name, event in self.engine.events(seconds):
            self.arrivals.append((time.monotonic(), event))
            yield name, event


def measure(folder: Path) -> dict[str, Any]:
    """One sweep into a new folder, as `longshort sweep` runs it."""
    start = time.monotonic()
    from longshort.sweep.manifest.load import load_manifest
    from longshort.sweep.run.driver import run_plan
    from longshort.sweep.run.engines.local import LocalEngine
    from longshort.sweep.store.folder import Folder
    from longshort.sweep.store.plan import make_plan

    saving = []

    class Timed(Folder):
        def save(self, *arguments: Any) -> Path:
            before = time.monotonic()
            file = super().save(*arguments)
            saving.append(time.monotonic() - before)
            return file

    with tempfile.TemporaryDirectory(dir=folder) as name:
        store, engine = Timed(Path(name)), Noting(LocalEngine(1))
        with store.locked():
            items = make_plan(load_manifest(str(folder / "manifest.yaml")), store)
            planned = time.monotonic()
            progress = run_plan(items, store, engine, lambda progress, line: None)
            done = time.monotonic()
            store.write_table()
        end = time.monotonic()
    if progress.failures:
        return {"error": str(progress.failures)}
    times = {"planning": planned - start, "table": end - done, "seconds": end - start, "saving": sum(saving)}
    return parts(times, planned, engine.arrivals)


def parts(times: dict[str, float], planned: float, arrivals: Arrivals) -> dict[str, Any]:
    """Where one worker's time went, in seconds.

    Args:
        times: planning, table, saving, and the whole as seconds.
        planned: when the first worker was started; the others are as soon as the one before has ended.
        arrivals: events of all workers.
    """
    found = dict(times) | {"start_up": 0.0, "loading": 0.0, "evaluating": 0.0, "loads": 0, "results": 0}
    started, waits = planned, []
    for arrival, event in arrivals:
        if event["event"] == "loaded":
            loading = event["seconds"] - event["imports"]
            found["loading"] += loading
            found["start_up"] += arrival - started - loading
            found["loads"] += 1
            waits.append(arrival - started)
        elif event["event"] == "result":
            found["evaluating"] += event["seconds"]
            found["results"] += 1
        elif event["event"] == "exit":
            started = arrival
    found["rest"] = found["seconds"] - sum(found[name] for name in PARTS if name != "rest")
    return found | {
        "over_evaluating": found["seconds"] / found["evaluating"],
        "once_loaded_over_evaluating": (found["seconds"] - found["start_up"] - found["loading"]) / found["evaluating"],
        "saved": sum(waits) / found["loads"] * (found["results"] - found["loads"]),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of all runs, with the spread of the ratios."""
    row: dict[str, Any] = {"what": SIDE, "runs": len(runs)}
    row |= {name: median(run[name] for run in runs) for name in (*PARTS, "saving", "saved", "loads", "results")}
    for key in ("seconds", "over_evaluating", "once_loaded_over_evaluating"):
        row |= spread(runs, key)
    return row


def show(row: dict[str, Any]) -> None:
    """The table."""
    about = {
        "planning": "driver's imports, hashes, the plan",
        "start_up": f"{row['loads']} workers: Python and its imports",
        "loading": f"{row['loads']} times, once per checkpoint",
        "evaluating": f"{row['results']} tasks, as the workers tell",
        "table": "results.parquet",
        "rest": "workers ending, waiting for them, saving after the last task",
    }
    table = Table(title=f"{SIDE}: {row['seconds_median']:.1f} s", title_justify="left")
    for column in ("part", "seconds", "share", "what"):
        table.add_column(column, justify="right" if column in ("seconds", "share") else "left")
    for name in PARTS:
        share = row[name] / row["seconds_median"]
        table.add_row(name.replace("_", "-"), f"{row[name]:.2f}", f"{share:.1%}", about[name])
    console = Console()
    console.print(table)
    for line in (
        f"saving, mostly beside the next task: {row['saving']:.2f} s",
        f"whole time over the sum of evaluations: {row['over_evaluating_median']:.3f}; "
        f"once models are loaded: {row['once_loaded_over_evaluating_median']:.3f}",
        f"loaded once per checkpoint instead of once per task: {row['saved']:.1f} s saved",
    ):
        console.print(line, highlight=False)
