"""A whole evaluation of a tiny checkpoint on one document: `longshort eval` against the stock lm_eval command.

Next to nothing is computed, so this is the time to start: imports, task files, loading, the results file. The third
side is the least that any evaluation needs: a process that imports torch and transformers, loads the checkpoint with
the Auto classes and makes one forward. The fourth is the same without garbage collection, which `longshort` puts off
during imports too. Every side runs once before the clock runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.commands import greatest_difference, run_timed, stock, values_in
from benchmarks.common import parser, ratio, run_child, spread, take_turns, write
from longshort.testing import save_sized_checkpoint
from longshort.training.byte_tokenizer import byte_tokenizer

STOCK, OURS, BARE, BARE_WITHOUT_GC = SIDES = ["lm_eval run", "longshort eval", "bare", "bare, no gc"]
TASK = "longshort_perplexity"
LENGTHS = (64, 128, 256)
BARE_PROGRAM = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
with torch.no_grad():
    model(torch.tensor([tokenizer.encode("a" * {max(LENGTHS)})]))
"""


def main(arguments: list[str]) -> None:
    """Measure all sides in turns, print the table, write the JSON."""
    command = parser("startup", __doc__, SIDES, runs=5)
    command.add_argument("--hidden", type=int, default=32)
    command.add_argument("--layers", type=int, default=2)
    command.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of the one measurement in a child
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = {"hidden": options.hidden, "layers": options.layers, "positions": max(LENGTHS)}
        save_sized_checkpoint(folder / "model", byte_tokenizer(), "llama", 0, **shape)
        for side in SIDES:
            run_child("startup", {"folder": folder}, side)
        sides = take_turns(SIDES, options.runs, partial(run_child, "startup", {"folder": folder}))
        difference = greatest_difference(*(values_in(folder / side) for side in (OURS, STOCK)))
    rows = summary(sides)
    show(rows, difference)
    write([*rows, {"greatest_relative_difference": difference}], options, ("hidden", "layers", "runs"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side's command in a process of its own."""
    metadata = {"corpus": "builtin", "lengths": list(LENGTHS), "num_docs": 1}
    lengths = ",".join(map(str, LENGTHS))
    command = {
        STOCK: stock("model", [TASK], metadata, STOCK),
        OURS: [
            *["-m", "longshort", "eval", "model", "--tasks", TASK, "--corpus", "builtin", "--lengths", lengths],
            *["--num-docs", "1", "--dtype", "float32", "-o", OURS],
        ],
        BARE: ["-c", BARE_PROGRAM, "model"],
        BARE_WITHOUT_GC: ["-c", f"import gc; gc.disable(){BARE_PROGRAM}", "model"],
    }[options.side]
    return run_timed([command], options.folder)


def summary(sides: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A row per side: median and spread, and its time over that of the others."""
    rows = []
    for side, runs in sides.items():
        row = {"what": side, "runs": len(runs)} | spread(runs, "seconds") | spread(runs, "cpu_seconds")
        for other in (STOCK, BARE, BARE_WITHOUT_GC):
            row[f"over {other}"] = ratio(runs, sides[other], "seconds")
            row[f"CPU over {other}"] = ratio(runs, sides[other], "cpu_seconds")
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]], difference: float) -> None:
    """The table."""
    table = Table(title="one tiny checkpoint, one document, one task; whole processes", title_justify="left")
    for column in ("what", "seconds (min–max)", "CPU s", "× lm_eval", "× bare", "× no gc"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["what"],
            f"{row['seconds_median']:.2f} ({row['seconds_min']:.2f}–{row['seconds_max']:.2f})",
            f"{row['cpu_seconds_median']:.2f}",
            *(f"{row[f'over {other}']:.2f}" for other in (STOCK, BARE, BARE_WITHOUT_GC)),
        )
    Console().print(table)
    Console().print(f"greatest relative difference of a value: {difference:.1e}", highlight=False)
