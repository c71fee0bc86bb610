"""``longshort synthetic``, and the same as scripts/synthetic.py."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from longshort.options import run_app

EPILOG = """Examples:

longshort synthetic --quick -o quick

longshort synthetic -o results/synthetic

longshort synthetic --tasks length,length-log --encodings none,rope --max-length 500 -o far

longshort synthetic --device cuda --seeds 20 -o many-seeds
"""
QUICK = {"steps": 200, "sequences": 128, "pairs": 16}


def synthetic_command(
    output: Annotated[Path, typer.Option("-o", "--output", "--out", help="Folder for results.")] = Path("synthetic"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Train for 200 steps and measure fewer sequences: a preview.")
    ] = False,
    tasks: Annotated[
        str | None,
        typer.Option(help="Comma-separated: mean, length, length-sqrt, length-log, length-invsqrt.  [default: all]"),
    ] = None,
    encodings: Annotated[
        str | None, typer.Option(help="Comma-separated: none, learned, sinusoidal, rope, alibi.  [default: all]")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Models per setting.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=1_000_000, help="First seed.")] = 0,
    train_length: Annotated[int, typer.Option(min=2, max=100, help="Training lengths: 1 to this, in bits.")] = 10,
    max_length: Annotated[
        int, typer.Option(min=3, max=500, help="Test lengths: 1 to this, in bits; beyond 50 every 25th.")
    ] = 50,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.  [default: 3000]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, …")] = "cpu",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Settings that run at once.  [default: one per core on the CPU, at most 8; else 1]"),
    ] = None,
) -> None:
    """Train tiny transformers to predict the mean or the length of random bits, and measure how they generalize.

    Position encodings none, learned, sinusoidal, RoPE and ALiBi, several seeds each; length prediction also through
    OutRep (√x, log x, 1/√x). Tables, figures and the correlation of output misalignment with the error go to -o.

    An interrupted study resumes: run the same command again. Finished settings are kept, and the numbers are those of
    an uninterrupted run.
    """
    # torch takes seconds to import, not for --help
    from longshort.synthetic.config import StudyConfig
    from longshort.synthetic.model import ENCODINGS
    from longshort.synthetic.tasks import TASKS

    if max_length <= train_length:
        raise typer.BadParameter(f"must be above --train-length, {train_length}.", param_hint="--max-length")
    more: dict[str, Any] = dict(QUICK) if quick else {}
    if steps is not None:
        more["steps"] = steps
    config = StudyConfig(
        tasks=_names(tasks, tuple(TASKS), "--tasks"),
        encodings=_names(encodings, ENCODINGS, "--encodings"),
        seeds=seeds,
        seed=seed,
        train_length=train_length,
        max_length=max_length,
        **more,
    )
    from longshort.synthetic.report import write_report
    from longshort.synthetic.study import run_study

    start = time.perf_counter()
    results = run_study(config, output, device, workers)
    command = shlex.join(["longshort", "synthetic", *sys.argv[1 + (sys.argv[1:2] == ["synthetic"]) :]])
    write_report(config, results, output, command, time.perf_counter() - start)
    typer.echo(f"{output / 'tables.md'} has the tables, {output / 'figures'} the figures.")


def main() -> None:
    """Entry point of scripts/synthetic.py."""
    app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(synthetic_command)
    run_app(app)


def _names(given: str | None, known: tuple[str, ...], option: str) -> tuple[str, ...]:
    if given is None:
        return known
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"'{name}' is none of {', '.join(known)}.", param_hint=option)
    return names
