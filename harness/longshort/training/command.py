"""``longshort train``, and the same under ``accelerate launch scripts/train.py``."""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_origin, get_type_hints

import typer

from longshort.errors import UserError
from longshort.training.config import TrainConfig
from longshort.training.presets import PRESETS, preset

EPILOG = """Examples:

longshort train --preset paper-clex --corpus book.jsonl --alpha 0.1 -o clex-a0.1

longshort train --base meta-llama/Llama-2-7b-hf --extension yarn --factor 4 --alpha 0.1 -o llama2-16k-a0.1

longshort train --base llama2-16k --corpus book.jsonl --alpha 0 -o llama2-16k-baseline

longshort train --preset tiny --alpha 0.3 --eval-every 50 -o tiny-a0.3

accelerate launch scripts/train.py --base Qwen/Qwen3-0.6B --alpha 0.3 --dtype bfloat16 -o qwen3-a0.3
"""

FLAGS = {"output": ("--output", "-o"), "model_config": ("--config",)}


def train_command(*, preset_name: str | None, print_config: bool, **given: Any) -> None:
    """Train one checkpoint, regularized by long-short misalignment or plain.

    Each sequence is read through two overlapping windows;
    the loss is L_train + alpha * L_misalign (Du et al., ICML 2025).

    The result opens with any stock AutoModelForCausalLM.
    longshort.json and training_log.csv in it say how it came about.
    A killed run goes on where it was; running a finished one again does nothing.
    """
    try:
        settings = {name: _parse(name, value) for name, value in given.items() if value is not None}
        config = TrainConfig(**settings) if preset_name is None else preset(preset_name, **settings)
    except UserError as error:
        _stop(error, 2)
    if print_config:
        typer.echo(json.dumps(asdict(config.resolved()), indent=2))
        return
    from longshort.training.run import train  # torch and transformers: seconds, not for --help

    try:
        folder = train(config)
    except UserError as error:
        _stop(error, 1)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"{folder} has the checkpoint; its longshort.json says how it came about.")


def export_clex_command(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a CLEX checkpoint.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the stock checkpoint.")],
    t: Annotated[int, typer.Option("--t", help="The scale: texts up to t times the base's own length.")],
) -> None:
    """Write one scale of a CLEX checkpoint as a stock one (RoPE type longrope) that needs no remote code.

    Example:

    `longshort export-clex clex-a0.1 --t 4 -o clex-a0.1-t4`
    """
    from longshort.training.extension.clex import export_clex

    try:
        export_clex(checkpoint, output, t)
    except UserError as error:
        _stop(error, 1)


def main() -> None:
    """Entry point of scripts/train.py."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(train_command)
    app()


def _options() -> inspect.Signature:
    """One option per setting, so that a setting is described in one place, `TrainConfig`.

    Each is None where it is not given, so that a preset's value can stand.
    """
    options = [
        _option("preset_name", str, typer.Option("--preset", help=f"Start from {', '.join(PRESETS)}.")),
        _option(
            "print_config", bool, typer.Option("--print-config", help="Print all settings and stop."), default=False
        ),
    ]
    for field in fields(TrainConfig):
        hint = HINTS[field.name]
        shown = "" if field.default in (MISSING, None, (), False) else f"  \\[default: {field.default}]"
        help_text = hint.__metadata__[0] + shown
        flags = FLAGS.get(field.name) or (f"--{field.name.replace('_', '-')}",)  # no --no-… of a switch
        kind = str if _is_text(field.name) else hint.__origin__
        option = typer.Option(*flags, help=help_text, show_default=False)
        options.append(_option(field.name, kind, option, required=field.default is MISSING))
    return inspect.Signature(options)


def _option(name: str, kind: Any, option: Any, *, required: bool = False, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else default,
        annotation=Annotated[kind if required or default is not None else kind | None, option],
    )


HINTS = get_type_hints(TrainConfig, include_extras=True)


def _is_text(name: str) -> bool:
    """Whether the command line takes the setting as text to parse: lists and mappings."""
    return get_origin(HINTS[name].__origin__) is tuple or name == "extension_options"


def _parse(name: str, value: Any) -> Any:
    if not _is_text(name):
        return value
    flag = f"--{name.replace('_', '-')}"
    if name == "extension_options":
        try:
            options = json.loads(value)
        except ValueError as error:
            raise UserError(f"{flag} is no JSON: {error}.") from error
        if not isinstance(options, dict):
            raise UserError(f"{flag} must be a JSON object, such as '{{\"beta_fast\": 32}}'.")
        return options
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{flag} is '{value}'; it must be whole numbers with commas between.") from error


train_command.__signature__ = _options()  # type: ignore[attr-defined]  # typer reads it; mypy does not know it


def _stop(error: UserError, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":  # each process of a launch fails alike; one line is enough
        typer.echo(f"longshort: {error}", err=True)
    raise typer.Exit(code)
