"""``longshort sweep`` and ``longshort status``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from longshort.errors import UserError

if TYPE_CHECKING:
    from longshort.sweep.run.engines import Engine
    from longshort.sweep.store.folder import Folder
    from longshort.sweep.store.plan import Item

EPILOG = """Examples:

longshort sweep small -o small-results --dry-run --gpu a100

longshort sweep checkpoints.yaml -o results

longshort sweep checkpoints.yaml -o results --only 'pythia-*' --failed

longshort sweep paper -o paper-results --engine ray --address auto
"""


class EngineName(str, Enum):
    """Where workers run."""

    local = "local"
    ray = "ray"


def sweep_command(
    manifest: Annotated[str, typer.Argument(help="YAML file, or one of demo, small, pythia, paper, long-context.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the sweep; a rerun goes on in it.")] = Path(
        "sweep"
    ),
    engine: Annotated[EngineName, typer.Option(help="This machine, or a Ray cluster.")] = EngineName.local,
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster's head, HOST:PORT; auto on its nodes.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="At most so many.  [default: what devices allow]")] = None,
    node_wait: Annotated[
        float, typer.Option(min=0, help="Minutes to wait for a Ray node with the resources that are asked for.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what there is to do, and its cost.")] = False,
    gpu: Annotated[str, typer.Option(help="The GPU that hours are estimated for.")] = "h100",
    only: Annotated[list[str] | None, typer.Option(help="Only checkpoints whose name matches; repeatable.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed at the last time.")] = False,
) -> None:
    """Evaluate many checkpoints; what is in the folder already is not done again.

    Each checkpoint runs in a process of its own, for all its tasks. A rerun does what is missing.
    """
    from longshort.settings import plain_name
    from longshort.sweep.cost.estimate import GPUS, cost_of
    from longshort.sweep.manifest.load import load_manifest
    from longshort.sweep.store.folder import Folder, slug
    from longshort.sweep.store.plan import make_plan, to_run

    if gpu not in GPUS:
        raise typer.BadParameter(f"'{gpu}' is none of {', '.join(GPUS)}.", param_hint="--gpu")
    if address and engine is not EngineName.ray:
        raise typer.BadParameter("it needs --engine ray.", param_hint="--address")
    checkpoints = everything = load_manifest(manifest)
    if only:
        checkpoints = [c for c in everything if any(fnmatchcase(n, p) for n in (c.name, plain_name(c)) for p in only)]
        if not checkpoints:
            raise UserError(f"--only {' '.join(only)} matches no checkpoint of {manifest}.")
    folder, console = Folder(output), Console()
    if dry_run:
        show_plan(make_plan(checkpoints, folder), gpu, console)
        return
    with folder.locked():
        items = make_plan(checkpoints, folder)
        if failed:
            items = _failed_last(items, output)
            if not items:
                console.print(f"nothing failed in {output}", highlight=False)
                return

        def hours(item: Item) -> float:
            return cost_of(item.checkpoint, list(item.missing), GPUS[gpu]).hours

        items.sort(key=hours, reverse=True)  # the longest first: nobody waits for it at the end
        for item in items:
            for task, reason in item.missing.items():
                if reason:
                    console.print(f"{item.checkpoint.name}: {task} again: {reason}", soft_wrap=True, markup=False)
        folder.record("plan", checkpoints=[[slug(c), c.name, list(c.tasks)] for c in everything])
        expected = {name: hours(item) for name, item in to_run(items).items()}
        _run(items, folder, _engine(engine, address, workers, node_wait), expected, console)


def _engine(name: EngineName, address: str | None, workers: int | None, node_wait: float) -> Engine:
    if name is EngineName.ray:
        from longshort.sweep.run.engines.ray import RayEngine

        return RayEngine(address, workers, node_wait * 60)
    from longshort.sweep.run.engines.local import LocalEngine

    return LocalEngine(workers)


def _run(items: Sequence[Item], folder: Folder, engine: Engine, hours: dict[str, float], console: Console) -> None:
    from longshort.sweep.run.driver import run_plan
    from longshort.sweep.run.watch import watching
    from longshort.sweep.store.status import failure_lines

    again = shlex.join(["longshort", *(argument for argument in sys.argv[1:] if argument != "--failed")])
    if hours:
        console.print(f"{len(hours)} checkpoints to run; {engine.describe()}", highlight=False)
    try:
        with watching(console, hours) as watch:
            progress = run_plan(items, folder, engine, watch)
    except KeyboardInterrupt as error:
        typer.echo(f"longshort: interrupted; what is done is kept. To go on: {again}", err=True)
        raise typer.Exit(130) from error
    finally:
        problem = _write_table(folder)
    done = sum(state == "done" for state in progress.states.values())
    before = sum(len(item.done) for item in items)
    console.print(f"{done} results new, {before} there before, {len(progress.failures)} failed", highlight=False)
    if progress.failures:
        rows = ((progress.items[n].checkpoint.name, t, f.kind, f.message) for (n, t), f in progress.failures.items())
        for line in failure_lines(rows):
            typer.echo(line, err=True)
        # What could not be recorded is not known to have failed.
        again = f"{again} --failed" if folder.is_complete else again
        raise UserError(f"{len(progress.failures)} results are missing. To try only these again: {again}")
    if problem:
        raise UserError(f"{problem} Then run: longshort status {shlex.quote(str(folder.path))} --table")


def _write_table(folder: Folder) -> str | None:
    """Rebuild the table; return why it cannot be written."""
    try:
        folder.write_table()
    except UserError as error:
        if isinstance(error.__cause__, OSError):
            return str(error)
    return None  # without a result there is no table


def _failed_last(items: Sequence[Item], folder: Path) -> list[Item]:
    from longshort.sweep.store.folder import slug
    from longshort.sweep.store.status import states

    failed = {state.id for state in states(folder) if state.state == "failed"}
    return [item for item in items if slug(item.checkpoint) in failed]


def show_plan(items: Sequence[Item], gpu: str, console: Console) -> None:
    """Print every checkpoint: what is done, what there is to do and why, and what it costs."""
    from longshort.sweep.cost.estimate import GPUS, cost_of

    table = Table(title="GB: weights + activations; h: hours of one GPU", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("checkpoint", overflow="fold")
    for column in ("done", "to do", "Mtokens", "PFLOP", "GB", "h"):
        table.add_column(column, justify="right")
    total = [0.0, 0.0, 0.0]
    marks: list[str] = []
    licenses: dict[str, dict[str, None]] = {}
    assumed: set[str] = set()
    for item in items:
        cost = cost_of(item.checkpoint, list(item.missing), GPUS[gpu])
        gpus = max(1, item.checkpoint.resources.gpus or 1)
        figures = [cost.forward_tokens / 1e6, cost.flops / 1e15, cost.hours * gpus]
        total = [sum(pair) for pair in zip(total, figures, strict=True)]
        name = item.checkpoint.name + (" *" if item.checkpoint.gated else "")
        table.add_row(
            name,
            str(len(item.done)),
            str(len(item.missing)),
            _figure(figures[0]),
            _figure(figures[1]),
            f"{_figure(cost.weight_bytes / 1e9, 2)}+{_figure(cost.activation_bytes / 1e9, 2)}",
            _figure(figures[2], 2),
        )
        assumed.update(cost.assumed if item.missing else ())
        needed, there = (cost.weight_bytes + cost.activation_bytes) / 1e9, gpus * GPUS[gpu].memory / 1e9
        if item.missing and needed > there:
            marks.append(f"{item.checkpoint.name}: needs {needed:.0f} GB, {gpus} × {gpu} has {there:.0f} GB")
        if item.checkpoint.gated or item.checkpoint.license:  # once for all revisions
            licenses.setdefault(item.checkpoint.license or "on its page", {})[item.checkpoint.pretrained] = None
        if item.failure:
            marks.append(f"{item.checkpoint.name}: {item.failure.kind}, {item.failure.message}")
        marks += [f"{item.checkpoint.name}: {task} again: {why}" for task, why in item.missing.items() if why]
    console.print(table)
    marks += [f"license {license}: {', '.join(names)}" for license, names in licenses.items()]
    for mark in dict.fromkeys(marks):
        console.print(mark, markup=False, highlight=False, soft_wrap=True)
    if any(item.checkpoint.gated for item in items):
        console.print("* gated: ask for access on the model's page, then set HF_TOKEN", highlight=False)
    done, missing = sum(len(item.done) for item in items), sum(len(item.missing) for item in items)
    console.print(
        f"{len(items)} checkpoints: {done} results there, {missing} to do; {_figure(total[0])} Mtokens, "
        f"{_figure(total[1])} PFLOP, about {_figure(total[2])} hours of one {gpu}",
        highlight=False,
        soft_wrap=True,
    )
    for note in sorted(assumed):
        console.print(f"assumed: {note}", markup=False, highlight=False, soft_wrap=True)


def _figure(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def status_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    table: Annotated[bool, typer.Option("--table", help="Rebuild results.parquet from the results files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """What is done, running, failed and missing in a sweep's folder.

    Examples:

    `longshort status sweep`

    `longshort status sweep --table` after copying in results of the stock lm_eval
    """
    from longshort.sweep.store.folder import TABLE, Folder
    from longshort.sweep.store.status import is_running, show, states, to_json

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder. Name one that 'longshort sweep' has written.")
    if table:
        print(f"{folder / TABLE}: {Folder(folder).write_table()} rows", file=sys.stderr)
    if table and not (folder / "status.jsonl").is_file():
        return
    found = states(folder)
    if json:
        typer.echo(to_json(found))
        return
    console = Console()
    show(found, console)
    console.print("a sweep is running" if is_running(folder) else "no sweep is running", highlight=False)
