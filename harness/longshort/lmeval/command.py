"""``longshort eval``: evaluate one checkpoint through lm-eval."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from longshort.errors import UserError
from longshort.options import options_of, settings_of, usage_errors
from longshort.results.metrics import is_ours
from longshort.settings import Checkpoint
from longshort.settings.definition import Mark, build, marked

RETRIEVAL = "longshort_retrieval"
OPTIONS = [
    setting.name for setting in settings_of(Checkpoint) if setting.name not in marked(Checkpoint, Mark.MANIFEST_ONLY)
]


@options_of(Checkpoint, only=OPTIONS)
def eval_command(
    pretrained: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on the hub.")],
    settings: dict[str, Any],
    device: Annotated[
        str | None, typer.Option(help="Device: cpu, cuda, cuda:0, …  [default: a GPU if one is available]")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option(help="Further arguments of lm-eval's hf backend, KEY=VALUE; repeatable.")
    ] = None,
    log_samples: Annotated[bool, typer.Option("--log-samples", help="Also write the values of each document.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results JSON.")] = Path("results"),
) -> None:
    """Evaluate one checkpoint; writes the same results file as lm-eval.

    Examples:

    `longshort eval ./my-checkpoint --corpus builtin --lengths 512,1024,2048 --train-length 1024`

    `longshort eval ./my-checkpoint --tasks longshort_longbench_e --longbench-dir data.zip`

    `longshort eval EleutherAI/pythia-1.4b --lengths 1024,2048,4096 --train-length 2048 --dtype bfloat16`
    """
    check_model_args(model_args or [])
    with usage_errors():  # before torch and lm-eval are imported, which takes seconds
        checkpoint = build(Checkpoint, {"pretrained": pretrained} | settings)
    if checkpoint.task_args and all(is_ours(task) for task in checkpoint.tasks):
        typer.echo("warning: --task-args has no effect: it is for other tasks than longshort's.", err=True)

    from longshort.lmeval.imports import import_libraries

    import_libraries()
    from longshort.lmeval.evaluate import evaluate_checkpoint

    results = evaluate_checkpoint(
        model_arguments(checkpoint, model_args or []),
        tasks=checkpoint.tasks,
        metadata=checkpoint.metadata(),
        task_args=checkpoint.task_args,
        output=output,
        batch_size=checkpoint.batch_size,
        device=device,
        limit=None if checkpoint.limit is None else float(checkpoint.limit),  # as lm_eval's command line records it
        log_samples=log_samples,
    )
    if results:  # only on the first process
        _draw_retrieval(results, output)
        _report(results, output)


def check_model_args(arguments: list[str]) -> None:
    """Refuse what is not KEY=VALUE.

    Raises:
        UserError: one is not ("usage").
    """
    for argument in arguments:
        if not all(re.match(r"[^=\s]+=", part) for part in argument.split(",") if part):
            raise UserError(f"--model-args: '{argument}' is not KEY=VALUE.", "usage", "model_args")


def model_arguments(checkpoint: Checkpoint, model_args: list[str]) -> dict[str, Any]:
    """Return the arguments of lm-eval's ``hf`` backend, further ones as ``--model-args`` has them."""
    from lm_eval.utils import simple_parse_args_string

    arguments = checkpoint.loading
    if Path(checkpoint.pretrained).is_dir():  # lm-eval would write the results of ./name to a hidden folder
        arguments["pretrained"] = os.path.normpath(checkpoint.pretrained)
    return arguments | dict(simple_parse_args_string(",".join(model_args)))


def _draw_retrieval(results: dict[str, Any], output: Path) -> None:
    """Draw recall by length and depth next to the results file that was just written, if it has any."""
    metadata = (results["configs"].get(RETRIEVAL) or {}).get("metadata") or {}
    if not (metadata.get("scored") or {}).get("depths"):
        return
    from longshort.analysis.figures.retrieval import heat_maps
    from longshort.analysis.retrieval import cells

    file = max((output / results["model_name_sanitized"]).glob("results_*.json"))  # names end in the time
    heat_maps(cells([file]), file.with_name(file.name.replace("results_", "retrieval_", 1)).with_suffix(""))


def _report(results: dict[str, Any], output: Path) -> None:
    """Print the results.

    Raises:
        UserError: some values are missing.
    """
    from longshort.lmeval.evaluate import problems
    from longshort.lmeval.table import results_table

    results_table(results)
    typer.echo(f"{output / results['model_name_sanitized']} has the results.")
    found = problems(results)
    if found:
        raise UserError(f"{'; '.join(found)}. The warnings above say why.", "incomplete")
