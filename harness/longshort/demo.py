"""The embedded default, end to end: train tiny checkpoints on real text, evaluate them, correlate.

Nothing here is special but the configuration: training, evaluation and analysis are those of real checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from longshort.devices import available_cpus
from longshort.errors import UserError
from longshort.settings import DEFAULT_TASKS, Checkpoint, Resources
from longshort.training.config import TrainConfig
from longshort.training.extension.options import Extension
from longshort.training.presets import preset

TRAIN_LENGTH = 128  # of the preset "tiny", whose model has 0.84M parameters over bytes
FACTOR = 4.0  # the extended checkpoints are made for 512 tokens
SWEEP = "sweep"  # folder of the evaluations, below the demo's
RETRIEVAL = "longshort_retrieval"


@dataclass(frozen=True)
class Scale:
    """How much is trained. The default fits ten minutes on two cores; tests take less."""

    base_steps: int = 1200
    steps: int = 100
    batch_size: int = 8
    num_docs: int = 24
    lengths: tuple[int, ...] = (128, 256, 512, 1024)
    alphas: tuple[float, ...] = (0.0, 0.1, 0.5)
    extensions: tuple[Extension, ...] = ("none", "yarn", "clex", "eabf")
    cpus: int = 2  # cores, and threads, of an evaluation
    needles: int = 1  # with the question about 110 bytes, so that it fits from 128 bytes on
    depths: int = 2


def run_demo(out: Path, scale: Scale | None = None, console: Console | None = None) -> None:
    """Train, evaluate and correlate in `out`; finished work is not repeated.

    Raises:
        UserError: the folder is not writable, holds something else, or an evaluation failed.
    """
    from longshort.training import train

    scale, console = scale or Scale(), console or Console()
    configs = training_plan(out, scale)
    stages = Stages(console, len(configs) + 1, scale)
    for config in configs:
        with stages.stage(f"train {Path(config.output).name}", config.steps * config.windows):
            train(config)
    checkpoints = [checkpoint_of(config, scale) for config in configs[1:]]  # the base is not part of the comparison
    with stages.stage(f"evaluate {len(checkpoints)} checkpoints", stages.evaluation * len(checkpoints)):
        evaluate(checkpoints, out / SWEEP, console)
    report(out, scale, console)


def training_plan(out: Path, scale: Scale) -> list[TrainConfig]:
    """The base, then its variants: every α and position handling, with the same tokens in the same order."""
    batch = {"global_batch_size": scale.batch_size, "batch_size": scale.batch_size}
    folder = out / "checkpoints"
    base = preset("tiny", output=str(folder / "base"), alpha=0.0, windows=1, steps=scale.base_steps, **batch)
    plan = [base]
    for extension, alpha in product(scale.extensions, scale.alphas):
        name = f"{'plain' if extension == 'none' else extension}-a{alpha:g}"
        plan.append(
            preset(
                "tiny",
                output=str(folder / name),
                base=base.output,
                alpha=alpha,
                extension=extension,
                factor=None if extension == "none" else FACTOR,
                steps=scale.steps,
                learning_rate=1e-3,
                seed=1,
                **batch,
            )
        )
    return plan


def checkpoint_of(config: TrainConfig, scale: Scale) -> Checkpoint:
    """The evaluation of one trained checkpoint, with its settings."""
    return Checkpoint(
        pretrained=str(Path(config.output).resolve()),
        tasks=(*DEFAULT_TASKS, RETRIEVAL),
        corpus="builtin",
        lengths=scale.lengths,
        train_length=TRAIN_LENGTH,
        num_docs=scale.num_docs,
        needles=scale.needles,
        depths=scale.depths,
        family="plain" if config.extension == "none" else config.extension,
        dtype="float32",
        trust_remote_code=config.extension in ("clex", "eabf"),  # code that this demo itself has just written
        batch_size="auto",
        resources=Resources(cpus=min(scale.cpus, available_cpus())),
    )


def evaluate(checkpoints: Sequence[Checkpoint], out: Path, console: Console) -> None:
    """Evaluate the checkpoints as ``longshort sweep`` does; results that are still valid are kept.

    Raises:
        UserError: an evaluation failed, or the folder is not writable.
    """
    from longshort.sweep.run.driver import run_plan
    from longshort.sweep.run.engines.local import LocalEngine
    from longshort.sweep.run.watch import watching
    from longshort.sweep.store.folder import Folder
    from longshort.sweep.store.plan import make_plan, to_run

    folder = Folder(out)
    with folder.locked():
        items = make_plan(checkpoints, folder)
        with watching(console, dict.fromkeys(to_run(items), 1.0)) as watch:
            progress = run_plan(items, folder, LocalEngine(), watch)
    for (name, task), failure in progress.failures.items():
        raise UserError(f"Cannot evaluate {name} ({task}): {failure.message}", failure.kind)


def report(out: Path, scale: Scale, console: Console) -> None:
    """Tables on the terminal; tables, figures and report.html in `out`.

    Raises:
        UserError: there is no result, or the folder cannot be written.
    """
    from longshort.analysis import analyze, write_analysis
    from longshort.analysis.command import show_leaderboards
    from longshort.training.checkpoint import LOG

    analysis = analyze(out / SWEEP)
    written = write_analysis(analysis, out)
    tidy = analysis.tidy.assign(checkpoint=analysis.tidy["checkpoint"].map(lambda path: Path(path).name))
    console.print()
    console.print(checkpoint_table(tidy, scale.lengths))
    show_leaderboards(analysis, console)
    console.print(retrieval_note(tidy))
    if logs := [Path(config.output) / LOG for config in training_plan(out, scale) if config.extension == "clex"]:
        console.print(clipping_note(logs))
    console.print(
        f"n = {len(analysis.wide)} checkpoints of one base that differ in position handling and α: this shows that the "
        "parts work together. It is not evidence for or against the paper."
    )
    tables = ", ".join(path.name for path in written if path.parent == out)
    console.print(f"written to {out}: {tables} and figures/", markup=False, highlight=False)


def checkpoint_table(tidy: Any, lengths: Sequence[int]) -> Table:
    """A row per checkpoint: perplexity by length, misalignment and its two parts at the training context length."""
    title = f"perplexity by length; misalignment and its two parts at {TRAIN_LENGTH}, nats"
    table = Table(title=title, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("checkpoint", no_wrap=True)
    columns = [("ppl", length) for length in lengths] + [
        (name, TRAIN_LENGTH) for name in ("sce", "entropy", "jeffreys")
    ]
    for metric, length in columns:
        table.add_column(f"ppl@{length}" if metric == "ppl" else metric, justify="right")
    values = tidy.set_index(["checkpoint", "metric", "length"])["value"]
    for checkpoint in tidy["checkpoint"].unique():
        cells = (values.get((checkpoint, metric, length)) for metric, length in columns)
        table.add_row(checkpoint, *("–" if cell is None else f"{cell:.3g}" for cell in cells))
    return table


def retrieval_note(tidy: Any) -> str:
    """How many of the checkpoints retrieve anything, and what that means for recall as an outcome."""
    recall = tidy[tidy["metric"] == "recall"]
    best = recall.groupby("checkpoint")["value"].max()
    lengths = ", ".join(f"{length:,}" for length in sorted(recall["length"].unique()))
    if best.max() == 0:
        return (
            f"Retrieval: recall is 0 for all {len(best)} checkpoints at {lengths} tokens. Models of this size do not "
            "retrieve, so recall cannot rank the predictors here; recall_nll varies and is in the report."
        )
    return f"Retrieval: recall is above 0 for {(best > 0).sum()} of {len(best)} checkpoints at {lengths} tokens."


def clipping_note(logs: Sequence[Path], max_norm: float = TrainConfig.max_grad_norm) -> str:
    """What clipping CLEX's frequencies by a norm of their own changed, from the training logs of runs."""
    import numpy as np
    import pandas as pd

    norms = pd.concat([pd.read_csv(log) for log in logs])
    others, frequencies = norms["grad_norm"], norms["grad_norm_frequencies"]
    joint = np.hypot(others, frequencies)
    smaller = np.maximum(joint, max_norm) / others.clip(lower=max_norm)
    return (
        f"CLEX: the gradient of the learned frequencies has a norm of {frequencies.median():.2g} in the median step "
        f"and {frequencies.max():.2g} in the largest. It is clipped apart: clipped by one norm, the gradient of the "
        f"other weights would be up to {smaller.max():.3g} times smaller (median {smaller.median():.3g})."
    )


class Stages:
    """Counts the stages and estimates the time left from their weights."""

    evaluation = 200  # in training steps of one window

    def __init__(self, console: Console, count: int, scale: Scale) -> None:
        self.console, self.count, self.index = console, count, 0
        made = len(scale.alphas) * len(scale.extensions)
        self.left = float(scale.base_steps + made * (2 * scale.steps + self.evaluation))
        self.spent_seconds = self.spent = 0.0

    @contextmanager
    def stage(self, name: str, weight: float) -> Iterator[None]:
        """Announce one stage; learn from the time it takes."""
        self.index += 1
        estimate = f", about {self.left * self.spent_seconds / self.spent / 60:.1f} min left" if self.spent else ""
        self.console.print(f"[{self.index}/{self.count}] {name}{estimate}", markup=False, highlight=False)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.left -= weight
        if seconds > 1:  # not finished work that was kept
            self.spent += weight
            self.spent_seconds += seconds
