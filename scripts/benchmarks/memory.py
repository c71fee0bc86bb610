"""The estimate of a training run's memory against what the process held: tiny Llamas, a few whole steps on the CPU.

A measurement is a process that trains once at a small length, so that all libraries are loaded, and then trains the
configuration. Measured is the peak of its resident memory above what it held before, with every large tensor mapped
on its own (by default glibc's heap fragments, and a process holds more); the estimate is the one that
`longshort train --print-config` shows. No GPU was at hand: its allocator and its kernels are not measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import memory_now, memory_peak, parser, run_child, spread, take_turns, write

if TYPE_CHECKING:
    from longshort.training import TrainConfig

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
}
# glibc keeps freed tensors in its heap, where they fragment, unless it maps each on its own.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
# What each trains; the shape of its model, and the settings.
CONFIGURATIONS: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "full": ({}, {"train_length": 512}),
    "checkpointing": ({}, {"train_length": 1024, "gradient_checkpointing": True}),
    "lora": ({}, {"train_length": 512, "lora_rank": 8}),
    "dense": ({"vocab_size": 8000, "num_hidden_layers": 4}, {"train_length": 512, "loss": "dense", "max_extra": 1}),
    "bfloat16": ({}, {"train_length": 512, "dtype": "bfloat16"}),
    "accumulation": ({"hidden_size": 640, "intermediate_size": 1728}, {"train_length": 128, "global_batch_size": 2}),
}
COMMON = {"corpus": "builtin", "tokenizer": "bytes", "batch_size": 1, "global_batch_size": 1, "steps": 2}


def main(arguments: list[str]) -> None:
    """Measure every configuration, write the table."""
    command = parser("memory", __doc__, list(CONFIGURATIONS), of="processes per configuration")
    command.set_defaults(output=Path("results/training_memory/memory.json"))
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options.side)))
        return
    os.environ |= MALLOC  # of the processes that measure
    sides = take_turns(list(CONFIGURATIONS), options.runs, partial(run_child, "memory", {}))
    rows = [summary(name, runs) for name, runs in sides.items()]
    write(rows, options, ("runs",))
    table = options.output.with_name("table.md")
    table.write_text(as_table(rows, options), "utf-8")
    print(table.read_text("utf-8"))


def measure(name: str) -> dict[str, Any]:
    """One configuration: bytes measured and estimated."""
    from longshort.training import train
    from longshort.training.base import load_architecture
    from longshort.training.estimate import estimate

    load_libraries()
    shape, _ = CONFIGURATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        wanted = config_in(Path(folder), name, MODEL | shape).resolved()
        estimated = estimate(wanted, load_architecture(wanted))
        gc.collect()  # a trainer refers to itself: what the run before held would be freed in this one
        before = memory_now("cpu")
        train(wanted, progress=False)
        measured = memory_peak("cpu") - before
    parts = {name: round(value) for name, value in estimated.device.parts.items()}
    return {"bytes": measured, "estimated": round(estimated.host.peak), "parts": parts}


@cache
def load_libraries() -> None:
    """Train once, so that everything that training imports is there."""
    from longshort.training import train

    with tempfile.TemporaryDirectory() as folder:
        shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
        train(config_in(Path(folder), "lora", MODEL | shape, train_length=32), progress=False)


def config_in(folder: Path, name: str, model: dict[str, Any], **changes: Any) -> TrainConfig:
    """The settings of a configuration, whose model and output lie in `folder`."""
    from longshort.training import TrainConfig

    (folder / "config.json").write_text(json.dumps(model))
    values = COMMON | CONFIGURATIONS[name][1] | changes
    return TrainConfig(output=str(folder / "run"), model_config=str(folder / "config.json"), **values)


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and spread of a configuration, and the estimate over it."""
    if "error" in runs[-1]:
        return {"configuration": name, "error": runs[-1]["error"]}
    row = {"configuration": name, "runs": len(runs), "estimated": runs[0]["estimated"], "parts": runs[0]["parts"]}
    row |= spread(runs, "bytes")
    return row | {"ratio": row["estimated"] / row["bytes_median"]}


def as_table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """The rows in Markdown."""
    lines = [
        "# Memory of training: estimated and measured",
        "",
        f"`python scripts/benchmark.py memory --runs {options.runs}`; what each configuration is stands in that "
        "script. Measured: peak of resident memory above the process before, median (least–greatest), on CPU, with "
        "`MALLOC_MMAP_THRESHOLD_=131072`. No GPU was at hand.",
        "",
        "| configuration | measured, MiB | estimated, MiB | estimated / measured |",
        "|---|---|---|---|",
    ]
    for row in rows:
        least, middle, greatest = (row[f"bytes_{name}"] / 2**20 for name in ("min", "median", "max"))
        lines.append(
            f"| {row['configuration']} | {middle:,.0f} ({least:,.0f}–{greatest:,.0f}) "
            f"| {row['estimated'] / 2**20:,.0f} | {row['ratio']:.2f} |"
        )
    return "\n".join([*lines, ""])
