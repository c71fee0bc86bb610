"""Prints a plan with its estimated cost, for ``longshort sweep --dry-run``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from longshort.devices import GPUS
from longshort.sweep.cost.estimate import Cost, cost_of
from longshort.sweep.store.plan import Item

COLUMNS = ("done", "to do", "Mtokens", "PFLOP", "GB", "h")


@dataclass(frozen=True)
class Row:
    """A planned checkpoint and the cost of what is missing."""

    item: Item
    cost: Cost
    gpus: int

    @property
    def name(self) -> str:
        """The name of the checkpoint."""
        return self.item.checkpoint.name

    @property
    def figures(self) -> tuple[float, float, float]:
        """Millions of tokens, PFLOP, and GPU hours."""
        return self.cost.forward_tokens / 1e6, self.cost.flops / 1e15, self.cost.hours * self.gpus


def show_plan(items: Sequence[Item], gpu: str, console: Console) -> None:
    """Print each checkpoint with its numbers of done and missing results and their cost, then notes and the total."""
    rows = [
        Row(item, cost_of(item.checkpoint, list(item.missing), GPUS[gpu]), max(1, item.checkpoint.resources.gpus or 1))
        for item in items
    ]
    console.print(_table(rows))
    notes = [note for row in rows for note in _notes(row, gpu)] + _licenses(items)
    for note in dict.fromkeys(notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if any(item.checkpoint.gated for item in items):
        console.print("* gated: ask for access on the model's page, then set HF_TOKEN", highlight=False)
    console.print(_total(rows, gpu), highlight=False, soft_wrap=True)
    for assumption in sorted({assumption for row in rows if row.item.missing for assumption in row.cost.assumed}):
        console.print(f"assumed: {assumption}", markup=False, highlight=False, soft_wrap=True)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title="GB: weights + activations; h: hours of one GPU", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("checkpoint", overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in rows:
        tokens, flops, hours = row.figures
        table.add_row(
            row.name + (" *" if row.item.checkpoint.gated else ""),
            str(len(row.item.done)),
            str(len(row.item.missing)),
            _figure(tokens),
            _figure(flops),
            f"{_figure(row.cost.weight_bytes / 1e9, 2)}+{_figure(row.cost.activation_bytes / 1e9, 2)}",
            _figure(hours, 2),
        )
    return table


def _notes(row: Row, gpu: str) -> Iterator[str]:
    """What to know about one checkpoint: too little memory, a known failure, results that are no longer valid."""
    needed, available = (row.cost.weight_bytes + row.cost.activation_bytes) / 1e9, row.gpus * GPUS[gpu].memory / 1e9
    if row.item.missing and needed > available:
        yield f"{row.name}: needs {needed:.0f} GB, {row.gpus} × {gpu} has {available:.0f} GB"
    if row.item.failure:
        yield f"{row.name}: {row.item.failure.kind}, {row.item.failure.message}"
    yield from row.item.reasons


def _licenses(items: Sequence[Item]) -> list[str]:
    """One line per license, which names each checkpoint once for all its revisions."""
    names: dict[str, dict[str, None]] = {}
    for checkpoint in (item.checkpoint for item in items):
        if checkpoint.gated or checkpoint.license:
            names.setdefault(checkpoint.license or "on its page", {})[checkpoint.pretrained] = None
    return [f"license {license_}: {', '.join(of_license)}" for license_, of_license in names.items()]


def _total(rows: Sequence[Row], gpu: str) -> str:
    done, missing = sum(len(row.item.done) for row in rows), sum(len(row.item.missing) for row in rows)
    tokens, flops, hours = (sum(column) for column in zip(*(row.figures for row in rows), strict=True))
    return (
        f"{len(rows)} checkpoints: {done} results exist, {missing} to do; {_figure(tokens)} Mtokens, "
        f"{_figure(flops)} PFLOP, about {_figure(hours)} hours of one {gpu}"
    )


def _figure(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"
