"""``longshort key-spans``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from longshort.errors import UserError
from longshort.lmeval.command import check_model_args, model_arguments
from longshort.options import options_of, usage_errors
from longshort.settings import Checkpoint
from longshort.settings.definition import build

OPTIONS = ("corpus", "lengths", "num_docs", "revision", "dtype", "trust_remote_code")


@options_of(Checkpoint, only=OPTIONS)
def key_spans_command(
    evaluator: Annotated[str, typer.Argument(help="Folder of the evaluator, or its name on the hub.")],
    settings: dict[str, Any],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.")] = Path("key_spans.jsonl"),
    short: Annotated[
        int,
        typer.Option(
            min=1,
            help="Minimum length of the short context, in tokens. As many tokens at the start of a document are never "
            "key tokens.",
        ),
    ] = 4096,
    stride: Annotated[
        int,
        typer.Option(
            min=1, help="Tokens scored in each window. The short context of the first one has --short tokens."
        ),
    ] = 1024,
    min_gain: Annotated[
        float,
        typer.Option(help="Minimum NLL gain of a key token from the long context, in nats."),
    ] = 2.0,
    max_loss: Annotated[float, typer.Option(help="Maximum NLL of a key token with the long context, in nats.")] = 2.0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Windows per forward pass.  [default: as many as have 16,384 tokens together]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device: cpu, cuda, cuda:0, …  [default: a GPU if one is available]")
    ] = None,
    model_args: Annotated[
        list[str] | None, typer.Option(help="Further arguments of lm-eval's hf backend, KEY=VALUE; repeatable.")
    ] = None,
) -> None:
    """Find key tokens with an evaluator model, for longshort_longppl.

    A key token is one that the evaluator predicts well with a long context and much worse with a short one. The file
    holds the characters of the key tokens, so that models with other tokenizers can be scored on the same text. Give
    the same corpus, lengths and number of documents as to the evaluation. After an interruption, run the same command
    again: documents that are done are not read again.

    Example: `longshort key-spans meta-llama/Llama-3.1-8B --corpus pg19 --lengths 32768 -o spans.jsonl`
    """
    check_model_args(model_args or [])
    for name, value in (("--min-gain", min_gain), ("--max-loss", max_loss)):
        if not math.isfinite(value):
            raise UserError(f"{name}: {value} is not a finite number.", "usage", name)
    with usage_errors():  # before torch and lm-eval are imported, which takes seconds
        checkpoint = build(Checkpoint, {"pretrained": evaluator} | settings)

    from longshort.lmeval.imports import import_libraries

    import_libraries()
    from longshort.key_spans.find import find_key_spans
    from longshort.scoring.key_tokens import Criterion

    found = find_key_spans(
        model_arguments(checkpoint, model_args or []),
        checkpoint,
        Criterion(short, stride, min_gain, max_loss),
        output,
        batch_size=batch_size,
        device=device,
    )
    typer.echo(found.summary(output))
