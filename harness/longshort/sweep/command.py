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

from longshort.errors import UserError

if TYPE_CHECKING:
    from longshort.settings import Checkpoint
    from longshort.sweep.run.engines import Engine
    from longshort.sweep.run.progress import Progress
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
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder of the sweep; a rerun resumes in the same folder.")
    ] = Path("sweep"),
    engine: Annotated[EngineName, typer.Option(help="Run on this machine or on a Ray cluster.")] = EngineName.local,
    address: Annotated[
        str | None, typer.Option(help="HOST:PORT of the Ray cluster's head, or auto on one of its nodes.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of workers.  [default: as many as the devices allow]")
    ] = None,
    node_wait: Annotated[
        float, typer.Option(min=0, help="Minutes to wait for a Ray node with the requested resources.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan and its estimated cost.")] = False,
    gpu: Annotated[str, typer.Option(help="GPU for which the hours are estimated.")] = "h100",
    only: Annotated[list[str] | None, typer.Option(help="Run only checkpoints whose name matches; repeatable.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Rerun only the checkpoints that failed.")] = False,
) -> None:
    """Evaluate many checkpoints into one folder.

    Each checkpoint runs in its own process, for all its tasks. Interrupted sweeps resume: a rerun evaluates only what
    is missing.
    """
    from longshort.devices import GPUS
    from longshort.sweep.manifest.load import load_manifest
    from longshort.sweep.plan_table import show_plan
    from longshort.sweep.store.folder import Folder, slug
    from longshort.sweep.store.plan import make_plan

    if gpu not in GPUS:
        raise typer.BadParameter(f"'{gpu}' is not one of {', '.join(GPUS)}.", param_hint="--gpu")
    if address and engine is not EngineName.ray:
        raise typer.BadParameter("it requires --engine ray.", param_hint="--address")
    everything = load_manifest(manifest)
    checkpoints = _matching(everything, only, manifest) if only else everything
    folder, console = Folder(output), Console()
    if dry_run:
        show_plan(make_plan(checkpoints, folder), gpu, console)
        return
    with folder.locked():
        folder.adopt(everything)
        items = make_plan(checkpoints, folder)
        if failed:
            items = _failed_last(items, output)
            if not items:
                console.print(f"No checkpoint failed in {output}.", highlight=False)
                return
        hours = _sort_by_hours(items, gpu)
        for reason in (reason for item in items for reason in item.reasons):
            console.print(reason, soft_wrap=True, markup=False)
        folder.record("plan", checkpoints=[[slug(c), c.name, list(c.tasks)] for c in everything])
        _run(items, folder, _engine(engine, address, workers, node_wait), hours, console)


def _matching(checkpoints: Sequence[Checkpoint], patterns: Sequence[str], manifest: str) -> list[Checkpoint]:
    from longshort.settings import plain_name

    found = [c for c in checkpoints if any(fnmatchcase(n, p) for n in (c.name, plain_name(c)) for p in patterns)]
    if not found:
        shown = " ".join(patterns)
        raise UserError(f"--only {shown} matches no checkpoint of {manifest}. Correct the pattern.", "setting", "only")
    return found


def _failed_last(items: Sequence[Item], folder: Path) -> list[Item]:
    """The checkpoints whose last attempt failed."""
    from longshort.sweep.store.folder import former_slug, slug
    from longshort.sweep.store.status import states

    failed = {state.id for state in states(folder) if state.state == "failed"}
    return [item for item in items if failed & {slug(item.checkpoint), former_slug(item.checkpoint)}]


def _sort_by_hours(items: list[Item], gpu: str) -> dict[str, float]:
    """Sort a plan, the longest first, so that no worker waits for it at the end; return the hours by name."""
    from longshort.devices import GPUS
    from longshort.sweep.cost.estimate import cost_of
    from longshort.sweep.store.plan import to_run

    def hours(item: Item) -> float:
        return cost_of(item.checkpoint, list(item.missing), GPUS[gpu]).hours

    items.sort(key=hours, reverse=True)
    return {name: hours(item) for name, item in to_run(items).items()}


def _engine(name: EngineName, address: str | None, workers: int | None, node_wait: float) -> Engine:
    if name is EngineName.ray:
        from longshort.sweep.run.engines.ray import RayEngine

        return RayEngine(address, workers, node_wait * 60)
    from longshort.sweep.run.engines.local import LocalEngine

    return LocalEngine(workers)


def _run(items: Sequence[Item], folder: Folder, engine: Engine, hours: dict[str, float], console: Console) -> None:
    from longshort.sweep.run.driver import run_plan
    from longshort.sweep.run.watch import watching

    again = shlex.join(["longshort", *(argument for argument in sys.argv[1:] if argument != "--failed")])
    if hours:
        console.print(f"{len(hours)} checkpoints to run; {engine.describe()}", highlight=False)
    try:
        with watching(console, hours) as watch:
            progress = run_plan(items, folder, engine, watch)
    except KeyboardInterrupt as error:
        typer.echo(f"longshort: interrupted. All finished results are saved. To resume: {again}", err=True)
        raise typer.Exit(130) from error
    finally:
        problem = _write_table(folder)
    done = sum(state == "done" for state in progress.states.values())
    before = sum(len(item.done) for item in items)
    failures = len(progress.failures)
    console.print(f"{done} new results, {before} existing, {failures} failed", highlight=False)
    if failures:
        # Failures that could not be recorded would not be found by --failed.
        _report_failures(progress, f"{again} --failed" if folder.is_complete else again)
    if problem:
        remedy = f"Then run: longshort status {shlex.quote(str(folder.path))} --table"
        raise UserError(f"{problem} {remedy}", problem.kind)


def _report_failures(progress: Progress, again: str) -> None:
    """Print the failures grouped by category.

    Raises:
        UserError: always, with the number of missing results and how to rerun them.
    """
    from longshort.sweep.store.failure import failure_lines

    names = {name: run.item.checkpoint.name for name, run in progress.runs.items()}
    rows = [(names[name], task, failure.kind, failure.message) for (name, task), failure in progress.failures.items()]
    for line in failure_lines(rows):
        typer.echo(line, err=True)
    raise UserError(f"{len(rows)} results are missing. To rerun only these: {again}", "incomplete")


def _write_table(folder: Folder) -> UserError | None:
    """Rebuild the table; return why it cannot be written. Without any result there is no table."""
    try:
        folder.write_table()
    except UserError as error:
        return error if error.kind == "unwritable" else None
    return None


def status_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    table: Annotated[bool, typer.Option("--table", help="Rebuild results.parquet from the results files.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Print which results of a sweep are done, running, failed or missing.

    Examples:

    `longshort status sweep`

    `longshort status sweep --table` after copying in results of the stock lm_eval
    """
    from longshort.sweep.store.folder import STATUS, TABLE, Folder
    from longshort.sweep.store.status import is_running, show, states, to_json

    if not folder.is_dir():
        message = f"{folder} is not a folder. Name a folder that 'longshort sweep' has written."
        raise UserError(message, "not_found", "folder")
    if table:
        print(f"{folder / TABLE}: {Folder(folder).write_table()} rows", file=sys.stderr)
    if table and not (folder / STATUS).is_file():
        return
    found = states(folder)
    if json:
        typer.echo(to_json(found))
        return
    console = Console()
    show(found, console)
    console.print("A sweep is running." if is_running(folder) else "No sweep is running.", highlight=False)
