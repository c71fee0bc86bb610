"""Twelve tiny checkpoints of four architectures and two tasks: `longshort sweep` against a shell loop of lm_eval.

The loop comes in two forms: a process per checkpoint and task, and one per checkpoint with both tasks. It runs over
`--loop` of the checkpoints and its time is scaled to all of them; the sweep runs over all. Workers have a core each.
Both sides read the same text. The values of the loop's checkpoints are compared with the sweep's: as timed, where
the loop has as many threads as the machine, and once more with one thread, as a worker has; the number of threads
changes the order of sums.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands import greatest_difference, run_timed, stock, values_in
from benchmarks.common import parser, ratio, run_child, spread, take_turns, write
from longshort.testing import ARCHITECTURES, save_letters, save_sized_checkpoint
from longshort.training.byte_tokenizer import byte_tokenizer

PER_TASK, PER_CHECKPOINT, SWEEP, ONE_WORKER = SIDES = [
    "lm_eval per task",
    "lm_eval per checkpoint",
    "longshort sweep",
    "sweep --workers 1",
]
ONE_THREAD = "lm_eval, one thread"  # not timed, compared
LOOPS = (PER_TASK, PER_CHECKPOINT)
TASKS = ["longshort_perplexity", "longshort_misalignment"]
SEEDS = 3
LENGTHS = [16, 32, 64]
DOCUMENTS = 3
MANIFEST = f"""
defaults: {{corpus: text.jsonl, lengths: {LENGTHS}, num_docs: {DOCUMENTS}, dtype: float32, resources: {{cpus: 1}}}}
checkpoints:
  - {{folders: models/*}}
"""


def main(arguments: list[str]) -> None:
    """Measure all sides in turns, print the table, write the JSON."""
    command = parser("sweep", __doc__, [*SIDES, ONE_THREAD])
    command.add_argument("--loop", type=int, default=4, help="checkpoints that the loop does, of 12")
    command.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the one measurement in a child
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_letters(folder / "text.jsonl", DOCUMENTS, 40 * max(LENGTHS))
        (folder / "manifest.yaml").write_text(MANIFEST)
        for seed in range(SEEDS):
            for architecture in ARCHITECTURES:
                model = folder / "models" / f"{seed}-{architecture}"  # the loop's first are one of each
                positions = 2 * max(LENGTHS)
                save_sized_checkpoint(
                    model, byte_tokenizer(), architecture, seed, hidden=32, layers=2, positions=positions
                )
        where = {"folder": folder, "loop": options.loop}
        sides = take_turns(SIDES, options.runs, partial(run_child, "sweep", where))
        run_child("sweep", where, ONE_THREAD)
        ours = values_in(folder / SWEEP)
        theirs = {loop: values_in(folder / loop) for loop in (*LOOPS, ONE_THREAD)}
    rows = summary(sides)
    rows.append({"what": ONE_THREAD})
    for row in rows:
        if row["what"] in theirs:
            row["values_compared"] = len(theirs[row["what"]])
            row["greatest_relative_difference"] = greatest_difference(ours, theirs[row["what"]])
    show(rows)
    write(rows, options, ("loop", "runs"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side's commands, in a folder that does not hold their results yet."""
    output = options.folder / options.side
    shutil.rmtree(output, ignore_errors=True)
    models = sorted((options.folder / "models").iterdir())
    if options.side == ONE_THREAD:
        os.environ["OMP_NUM_THREADS"] = "1"
    if options.side in (*LOOPS, ONE_THREAD):
        metadata = {"corpus": "text.jsonl", "lengths": LENGTHS, "num_docs": DOCUMENTS}
        together = [[task] for task in TASKS] if options.side == PER_TASK else [TASKS]
        commands = [
            stock(f"models/{model.name}", tasks, metadata, f"{options.side}/{model.name}-{number}")
            for model in models[: options.loop]
            for number, tasks in enumerate(together)
        ]
        times = run_timed(commands, options.folder)
        return {key: seconds * len(models) / options.loop for key, seconds in times.items()}
    workers = ["--workers", "1"] if options.side == ONE_WORKER else []
    return run_timed([["-m", "longshort", "sweep", "manifest.yaml", "-o", options.side, *workers]], options.folder)


def summary(sides: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per side: median and spread, and its time over that of the loops."""
    rows = []
    for side, runs in sides.items():
        row: dict[str, Any] = {"what": side, "runs": len(runs), "scaled": side in LOOPS}
        row |= spread(runs, "seconds") | spread(runs, "cpu_seconds")
        for loop in LOOPS:
            row[f"over {loop}"] = ratio(runs, sides[loop], "seconds")
            row[f"CPU over {loop}"] = ratio(runs, sides[loop], "cpu_seconds")
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(
        title="12 tiny checkpoints × 2 tasks; time × of lm_eval per task and per checkpoint;\n"
        "diff: relative difference of the values from the sweep's",
        title_justify="left",
    )
    for column in ("what", "seconds (min–max)", "CPU s", "× task", "× ckpt", "diff"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for row in rows:
        times = [""] * 4
        if "runs" in row:
            times = [
                f"{row['seconds_median']:.0f} ({row['seconds_min']:.0f}–{row['seconds_max']:.0f})",
                f"{row['cpu_seconds_median']:.0f}",
                *(f"{row[f'over {loop}']:.2f}" for loop in LOOPS),
            ]
        differ = row.get("greatest_relative_difference")
        table.add_row(row["what"], *times, "" if differ is None else f"{differ:.0e}")
    Console().print(table)
