"""The `longshort` command."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import longshort
from longshort.analysis import command as analysis
from longshort.errors import UserError
from longshort.longbench import command as longbench
from longshort.settings import DEFAULT_TASKS, EvalSettings
from longshort.sweep import command as sweep
from longshort.synthetic import command as synthetic
from longshort.training import command as training


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """As ever, but Ctrl-C is told: typer ends without a word, or with "Aborted!", from version to version."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("longshort: interrupted. To go on, run the same command again.", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Measure long-short alignment in language models: how perplexity and next-token distributions change "
    "with the length of the context.",
)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 1, or 2 for wrong usage."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("longshort").addHandler(handler)
    try:
        app()
    except UserError as error:
        print(f"longshort: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(asked: bool) -> None:
    if asked:
        print(f"longshort {longshort.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def tasks() -> None:
    """Print the folder of the task files, for lm-eval's `--include_path`.

    Example: `lm_eval run --model hf --model_args pretrained=DIR --include_path $(longshort tasks)
    --tasks 'longshort_*'`
    """
    from longshort.lmeval.task_folder import tasks_folder

    print(tasks_folder())


app.command("train", epilog=training.EPILOG, no_args_is_help=True)(training.train_command)
app.command("correlate", epilog=analysis.EPILOG, no_args_is_help=True)(analysis.correlate_command)
app.command("export-clex", no_args_is_help=True)(training.export_clex_command)
app.command("sweep", epilog=sweep.EPILOG, no_args_is_help=True)(sweep.sweep_command)
app.command("status", no_args_is_help=True)(sweep.status_command)
app.command("score-longbench", no_args_is_help=True)(longbench.score_longbench_command)
app.command("synthetic", epilog=synthetic.EPILOG)(synthetic.synthetic_command)


@app.command("eval", no_args_is_help=True)
def evaluate(
    pretrained: Annotated[str, typer.Argument(help="Folder of a checkpoint, or its name on the hub.")],
    tasks: Annotated[str, typer.Option(help="Comma-separated names or globs, of any lm-eval task.")] = ",".join(
        DEFAULT_TASKS
    ),
    corpus: Annotated[
        str,
        typer.Option(
            help="pg19, builtin, a path or glob of .txt, .jsonl, .jsonl.zst, .parquet, "
            "or hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN]."
        ),
    ] = EvalSettings.corpus,
    lengths: Annotated[str, typer.Option(help="Lengths in tokens, comma-separated.")] = ",".join(
        map(str, EvalSettings.lengths)
    ),
    train_length: Annotated[
        int, typer.Option(help="Length the model was trained at, in tokens.")
    ] = EvalSettings.train_length,
    num_docs: Annotated[int, typer.Option(help="Documents scored.")] = EvalSettings.num_docs,
    tail_tokens: Annotated[
        int | None, typer.Option(help="Targets of the fixed-target view.  [default: half the smallest length]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws of the second context length.")] = EvalSettings.seed,
    longbench_dir: Annotated[
        Path | None, typer.Option(help="Folder or zip with the official LongBench files, for longshort_longbench_e.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="Family of the checkpoint, for the analysis.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit on the hub.")] = "main",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Of the weights; auto: as they are saved.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0, …  [default: a GPU if there is one]")] = None,
    batch_size: Annotated[str, typer.Option(help="Documents per forward, or auto.")] = "1",
    limit: Annotated[float | None, typer.Option(help="Only the first so many documents.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code of the checkpoint.")] = False,
    model_args: Annotated[
        list[str] | None, typer.Option(help="Further arguments of lm-eval's hf backend, KEY=VALUE; repeatable.")
    ] = None,
    log_samples: Annotated[bool, typer.Option("--log-samples", help="Also write per-document values.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the results JSON.")] = Path("results"),
) -> None:
    """Evaluate one checkpoint; writes the same results file as lm-eval.

    Examples:

    `longshort eval ./my-checkpoint --corpus builtin --lengths 512,1024,2048 --train-length 1024`

    `longshort eval ./my-checkpoint --tasks longshort_longbench_e --longbench-dir data.zip`

    `longshort eval EleutherAI/pythia-1.4b --lengths 1024,2048,4096 --train-length 2048 --dtype bfloat16`
    """
    from longshort.settings import settings_from

    if not re.fullmatch(r"auto(:[0-9]+)?|0*[1-9][0-9]*", batch_size):
        raise typer.BadParameter(f"'{batch_size}' is neither auto nor a whole number.", param_hint="--batch-size")
    if limit is not None and not 0 < limit < math.inf:
        raise typer.BadParameter(f"{limit} is not a number above 0.", param_hint="--limit")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("it names no task. Leave it out for longshort's own.", param_hint="--tasks")
    for argument in model_args or []:
        if not all(re.match(r"[^=\s]+=", part) for part in argument.split(",") if part):
            raise typer.BadParameter(f"'{argument}' is not KEY=VALUE.", param_hint="--model-args")
    given: dict[str, Any] = {
        "corpus": corpus,
        "lengths": lengths,
        "train_length": train_length,
        "num_docs": num_docs,
        "tail_tokens": tail_tokens,
        "seed": seed,
        "family": family,
        "longbench_dir": str(longbench_dir) if longbench_dir else None,
    }
    metadata = {key: value for key, value in given.items() if value is not None}
    try:
        settings_from(metadata)  # a mistake is told before torch and lm-eval are imported, which takes seconds
    except UserError as error:
        raise UserError(error.message, "usage", error.field) from error

    from longshort.lmeval.imports import import_libraries

    import_libraries()
    from lm_eval.utils import simple_parse_args_string

    from longshort.lmeval.evaluate import evaluate_checkpoint, problems
    from longshort.lmeval.table import results_table

    if Path(pretrained).is_dir():
        pretrained = os.path.normpath(pretrained)  # lm-eval would make of ./name a hidden folder of results
    arguments: dict[str, Any] = {"pretrained": pretrained, "revision": revision, "dtype": dtype}
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    arguments |= simple_parse_args_string(",".join(model_args or []))
    results = evaluate_checkpoint(
        arguments,
        tasks=names,
        metadata=metadata,
        output=output,
        batch_size=int(batch_size) if batch_size.isdigit() else batch_size,
        device=device,
        limit=limit,
        log_samples=log_samples,
    )
    if results:
        results_table(results)
        typer.echo(f"{output / results['model_name_sanitized']} has the results.")
        lacking = problems(results)
        if lacking:
            raise UserError(f"{'; '.join(lacking)}. The warnings above say why.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, results and figures.")] = Path("longshort-demo"),
) -> None:
    """Train tiny checkpoints on real text, evaluate them through lm-eval, correlate. Under ten minutes on two cores.

    Run it again after an interruption: it goes on where it stopped.
    """
    from longshort.demo import run_demo

    run_demo(out)
