"""A regularized training step: the fused loss against a plain step on the same two windows, and the dense loss.

A step is forward and backward (no optimizer) of a random Llama in float32. Plain is the stock forward with
labels, as the Hugging Face Trainer calls it. Every process takes one step for the peak of memory and the median of
`--steps` for the time: the clock's, and the processor's, which other users of the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    limit_memory,
    memory_now,
    memory_peak,
    out_of_memory,
    parser,
    ratio,
    run_child,
    spread,
    take_turns,
    write,
)

PLAIN, FUSED, DENSE = SIDES = ["plain", "fused", "dense"]
SHAPE = ("length", "batch", "hidden", "layers", "steps")
ALPHA = 0.1


def main(arguments: list[str]) -> None:
    """Measure all sides at every vocabulary, print the table, write the JSON."""
    command = parser("train", __doc__, SIDES, of="processes per side and vocabulary")
    command.add_argument("--vocabulary", default="32000,128256", help="sizes, comma-separated")
    command.add_argument("--length", type=int, default=1024, help="tokens of a window")
    command.add_argument("--batch", type=int, default=1, help="sequences, of two windows each")
    command.add_argument("--hidden", type=int, default=512)
    command.add_argument("--layers", type=int, default=4)
    command.add_argument("--steps", type=int, default=3, help="timed steps of a process")
    options = command.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return
    rows = []
    shape = {name: getattr(options, name) for name in SHAPE}
    for vocabulary in map(int, options.vocabulary.split(",")):
        sides = take_turns(SIDES, options.runs, partial(run_child, "train", {"vocabulary": vocabulary} | shape))
        rows.append(summary(vocabulary, sides))
    show(rows, options)
    write(rows, options, (*SHAPE, "runs"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side: seconds of a step, peak bytes above the loaded model, and the loss for comparison."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM

    from longshort.training.fused import FusedLoss, add_fused_loss
    from longshort.training.regularizer import misalignment_loss

    torch.manual_seed(0)
    vocabulary, length = int(options.vocabulary), options.length
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        max_position_embeddings=length,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(config).to(device).train()
    tokens = torch.randint(vocabulary, (options.batch, length + length // 4), device=device)

    def plain(windows: Tensor, extra: int) -> Tensor:
        return model(input_ids=windows, labels=windows, use_cache=False).loss

    def fused(windows: Tensor, extra: int) -> Tensor:
        return model(input_ids=windows, fused_loss=FusedLoss(extra, 0, ALPHA)).loss

    def dense(windows: Tensor, extra: int) -> Tensor:
        logits = model(input_ids=windows, use_cache=False).logits
        targets = F.pad(windows[:, 1:], (0, 1), value=-100)
        cross_entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return cross_entropy + ALPHA * misalignment_loss(*logits.chunk(2), extra).loss

    if options.side == FUSED:
        add_fused_loss(model, tokens)
    loss_of = {PLAIN: plain, FUSED: fused, DENSE: dense}[options.side]

    def step(length: int) -> float:
        extra = length // 4
        model.zero_grad(set_to_none=True)
        loss = loss_of(torch.cat([tokens[:, :length], tokens[:, extra : extra + length]]), extra)
        loss.backward()
        return float(loss)

    step(32)
    model.zero_grad(set_to_none=True)
    before = memory_now(device)
    limit_memory()
    try:
        loss = step(length)
    except (RuntimeError, MemoryError) as error:
        return out_of_memory(error)
    peak = memory_peak(device) - before
    clock, processor = [], []
    for _ in range(options.steps):
        start = time.perf_counter(), time.process_time()
        step(length)
        clock.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return {
        "seconds": statistics.median(clock),
        "cpu_seconds": statistics.median(processor),
        "bytes": peak,
        "loss": loss,
    }


def summary(vocabulary: int, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median and spread of each side, and its ratios to the plain step."""
    row: dict[str, Any] = {"vocabulary": vocabulary}
    for side, runs in sides.items():
        if "error" in runs[-1]:
            row[side] = {"error": runs[-1]["error"]}
            continue
        row[side] = {"runs": len(runs), "loss": runs[-1]["loss"]}
        for key in ("seconds", "cpu_seconds", "bytes"):
            row[side] |= spread(runs, key)
            if "error" not in row[PLAIN]:
                row[side][f"{key}_over_plain"] = ratio(runs, sides[PLAIN], key)
    if "error" not in row[FUSED] and "error" not in row[DENSE]:
        row["memory_over_dense"] = row[FUSED]["bytes_median"] / row[DENSE]["bytes_median"]
    return row


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    table = Table(
        title=f"{options.batch} × 2 windows of {options.length}, hidden {options.hidden}, {options.layers} layers; "
        "forward and backward; memory above the loaded model; × of plain"
    )
    columns = ("vocabulary", "loss", "seconds (min–max)", "MiB", "time ×", "CPU ×", "memory ×")
    for column in columns:
        table.add_column(column, justify="left" if column == "loss" else "right")
    for row in rows:
        for side in SIDES:
            cell = row[side]
            if "error" in cell:
                table.add_row(f"{row['vocabulary']:,}", side, cell["error"])
                continue
            table.add_row(
                f"{row['vocabulary']:,}",
                side,
                f"{cell['seconds_median']:.2f} ({cell['seconds_min']:.2f}–{cell['seconds_max']:.2f})",
                f"{cell['bytes_median'] / 2**20:,.0f}",
                *(f"{cell.get(f'{key}_over_plain', float('nan')):.2f}" for key in ("seconds", "cpu_seconds", "bytes")),
            )
    Console().print(table)
