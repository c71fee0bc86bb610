"""Perplexity of one document: ours against stock lm-eval's `loglikelihood_rolling` at the same length."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import limit_memory, memory_now, memory_peak, out_of_memory, ratio, spread, take_turns, write

STOCK, OURS = "lm-eval loglikelihood_rolling", "longshort_perplexity"


def main(arguments: list[str]) -> None:
    """Measure both sides at every length, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="benchmark.py perplexity", description=__doc__)
    parser.add_argument("--tokens", default="4096,32768", help="lengths, comma-separated")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="processes per side and length")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/perplexity.json"))
    parser.add_argument("--side", choices=[STOCK, OURS], help=argparse.SUPPRESS)  # one measurement, in the child
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options)))
        return

    rows = []
    for tokens in map(int, options.tokens.split(",")):
        shape = {name: getattr(options, name) for name in ("vocabulary", "hidden", "layers")}
        sides = take_turns("perplexity", [STOCK, OURS], options.runs, {"tokens": tokens} | shape)
        rows.append(summary(tokens, sides))
    show(rows, options)
    write(rows, options, ("vocabulary", "hidden", "layers", "runs"))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side, one length: seconds, peak bytes above the loaded model, and the NLL for comparison."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import LlamaConfig, LlamaForCausalLM

    from longshort.corpora import Document
    from longshort.lmeval import requests
    from longshort.lmeval.settings import settings_from
    from longshort.training.byte_tokenizer import byte_tokenizer

    tokens = int(options.tokens)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=8,
        max_position_embeddings=tokens,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(config).eval().to(device)
    requests.register()
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), max_length=tokens, batch_size=1)
    letters = torch.randint(97, 123, (tokens,), generator=torch.Generator().manual_seed(0))
    text = bytes(letters.tolist()).decode()

    def stock(part: str) -> float:
        (log_likelihood,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (part,), 0)], True)
        return -float(log_likelihood) / len(part)

    def ours(part: str) -> float:
        job = requests.Job(Document("text", part), 0, settings_from({"lengths": [len(part)], "num_docs": 1}))
        (answer,) = requests.answer_perplexity(lm, [Instance(requests.PERPLEXITY, {}, ("text", job), 0)])
        return -answer.values[f"ppl@{len(part)}"]

    score: Callable[[str], float] = {STOCK: stock, OURS: ours}[options.side]
    score(text[:64])
    before = memory_now(device)
    limit_memory()
    start = time.perf_counter()
    try:
        nll = score(text)
    except (RuntimeError, MemoryError) as error:
        return out_of_memory(error)
    return {"seconds": time.perf_counter() - start, "bytes": memory_peak(device) - before, "nll": nll}


def summary(tokens: int, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Median and spread of each side, and ours over stock."""
    row: dict[str, Any] = {"tokens": tokens}
    for side, runs in sides.items():
        if "error" in runs[-1]:
            row[side] = {"error": runs[-1]["error"]}
            continue
        row[side] = spread(runs, "seconds") | {
            "bytes_median": spread(runs, "bytes")["bytes_median"],
            "nll": runs[-1]["nll"],
            "runs": len(runs),
        }
    if "error" not in row[STOCK] and "error" not in row[OURS]:
        row["time_ratio"] = ratio(sides[OURS], sides[STOCK], "seconds")
        row["memory_ratio"] = row[OURS]["bytes_median"] / row[STOCK]["bytes_median"]
    return row


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """The table."""
    table = Table(
        title=f"vocabulary {options.vocabulary:,}, hidden {options.hidden}, {options.layers} layers; "
        "memory above the loaded model"
    )
    for column in ("tokens", "what", "seconds (min–max)", "memory", "time ×", "memory ×"):
        table.add_column(column, justify="left" if column == "what" else "right", no_wrap=column == "what")
    for row in rows:
        for side in (STOCK, OURS):
            cell = row[side]
            if "error" in cell:
                table.add_row(f"{row['tokens']:,}", side, cell["error"], "–", "", "")
                continue
            seconds = f"{cell['seconds_median']:.2f} ({cell['seconds_min']:.2f}–{cell['seconds_max']:.2f})"
            ratios = [
                f"{row[key]:.3f}" if side == OURS and key in row else "" for key in ("time_ratio", "memory_ratio")
            ]
            table.add_row(f"{row['tokens']:,}", side, seconds, f"{cell['bytes_median'] / 2**20:,.0f} MiB", *ratios)
    Console().print(table)
