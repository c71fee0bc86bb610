"""The `longshort` command."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import longshort
from longshort.analysis import command as analysis
from longshort.key_spans import command as key_spans
from longshort.lmeval import command as lmeval
from longshort.longbench import command as longbench
from longshort.options import run_app
from longshort.show_tokens import command as show_tokens
from longshort.sweep import command as sweep
from longshort.synthetic import command as synthetic
from longshort.training import command as training


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Report Ctrl-C: some versions of typer print nothing, others "Aborted!"."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            typer.echo("longshort: interrupted. To resume, run the same command again.", err=True)
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
    """Run the command line; an error of the user is one line on stderr and exit code 1, or 2 for wrong usage."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("longshort").addHandler(handler)
    run_app(app)


def _version(asked: bool) -> None:
    if asked:
        print(f"longshort {longshort.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def tasks() -> None:
    """Print the folder with the task files, for lm-eval's `--include_path`.

    Example: `lm_eval run --model hf --model_args pretrained=DIR --include_path $(longshort tasks)
    --tasks 'longshort_*'`
    """
    from longshort.lmeval.task_folder import tasks_folder

    print(tasks_folder())


app.command("eval", no_args_is_help=True)(lmeval.eval_command)
app.command("key-spans", no_args_is_help=True)(key_spans.key_spans_command)
app.command("train", epilog=training.EPILOG, no_args_is_help=True)(training.train_command)
app.command("correlate", epilog=analysis.EPILOG, no_args_is_help=True)(analysis.correlate_command)
app.command("export-clex", no_args_is_help=True)(training.export_clex_command)
app.command("import-clex", no_args_is_help=True)(training.import_clex_command)
app.command("sweep", epilog=sweep.EPILOG, no_args_is_help=True)(sweep.sweep_command)
app.command("status", no_args_is_help=True)(sweep.status_command)
app.command("score-longbench", no_args_is_help=True)(longbench.score_longbench_command)
app.command("show-tokens", epilog=show_tokens.EPILOG, no_args_is_help=True)(show_tokens.show_tokens_command)
app.command("synthetic", epilog=synthetic.EPILOG)(synthetic.synthetic_command)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints, results and figures.")] = Path("longshort-demo"),
) -> None:
    """Train tiny checkpoints on real text, evaluate them through lm-eval, correlate. Under ten minutes on two cores.

    Run it again after an interruption: it goes on where it stopped.
    """
    from longshort.demo import run_demo

    run_demo(out)
