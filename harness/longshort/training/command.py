"""``longshort train``, and the same under ``accelerate launch scripts/train.py``."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from longshort.errors import UserError
from longshort.options import options_of, run_app, usage_errors
from longshort.training.config import TrainConfig
from longshort.training.extension.options import misread
from longshort.training.presets import PRESETS, preset

EPILOG = """Examples:

longshort train --preset tiny --alpha 0.3 --eval-every 50 -o tiny-a0.3

longshort train --preset paper-longqlora --train-length 4096 --factor 2 --alpha 0.1 -o llama2-qlora  # 1 × 24 GB

longshort train --base meta-llama/Llama-2-7b-hf --extension yarn --factor 4 --lora-rank 16 --dtype bfloat16
--gradient-checkpointing --alpha 0.1 -o llama2-16k-a0.1  # 1 × 80 GB

accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP
--fsdp_state_dict_type FULL_STATE_DICT scripts/train.py --preset paper-clex --corpus book.jsonl --alpha 0.1
-o clex-a0.1  # 8 × 80 GB

accelerate launch scripts/train.py --base Qwen/Qwen3-0.6B --alpha 0.3 --dtype bfloat16 -o qwen3-a0.3
"""

PRESET_HELP = f"Start from {', '.join(PRESETS)}; docs/training.md documents the sources."
FLAGS = {"output": ("--output", "-o"), "model_config": ("--config",)}


@options_of(TrainConfig, flags=FLAGS, optional=("output",))
def train_command(
    settings: dict[str, Any],
    preset_name: Annotated[str | None, typer.Option("--preset", help=PRESET_HELP)] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings and the estimated memory, then exit.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if memory or disk do not suffice by the estimate.")
    ] = False,
) -> None:
    """Train one checkpoint, regularized by long-short misalignment or plain.

    Each sequence is read through two overlapping windows;
    the loss is L_train + alpha * L_misalign (Du et al., ICML 2025).

    Load the result with AutoModelForCausalLM (CLEX and EABF: trust_remote_code=True).
    docs/loaders.md lists which methods vLLM and llama.cpp support.
    Its longshort.json and training_log.csv record the settings and the losses.
    A killed run resumes from its last save; running a finished one again does nothing.
    """
    if not print_config and "output" not in settings:
        raise UserError("Missing option --output (-o): the folder for the finished checkpoint.", "usage", "output")
    is_main = os.environ.get("RANK", "0") == "0"
    settings = {"output": ""} | settings
    with usage_errors():
        config = TrainConfig(**settings) if preset_name is None else preset(preset_name, **settings)
    if print_config:
        if is_main:
            typer.echo(json.dumps(asdict(config.resolved()) | {"output": config.output or None}, indent=2))
            from longshort.training.fit import print_estimate  # torch and transformers: seconds, not for --help

            print_estimate(config.resolved())
        return
    from longshort.training.run import train

    folder = train(config, force=force)
    if is_main:
        typer.echo(f"Checkpoint written to {folder}; its longshort.json records the settings and the corpus.")
        if warning := misread(config.extension, config.extension_options):
            typer.echo(f"Other engines: {warning} (docs/loaders.md).")


def export_clex_command(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a CLEX checkpoint.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the exported checkpoint.")],
    t: Annotated[int, typer.Option("--t", help="Scale: the longest text, in multiples of the base's own length.")],
) -> None:
    """Write one scale of a CLEX checkpoint as a checkpoint of RoPE type longrope, which needs no remote code.

    transformers and vLLM read it; llama.cpp reads it as plain RoPE.

    Example:

    `longshort export-clex clex-a0.1 --t 4 -o clex-a0.1-t4`
    """
    from longshort.training.extension.clex import export_clex

    export_clex(checkpoint, output, t)


def import_clex_command(
    checkpoint: Annotated[str, typer.Argument(help="Folder or hub name of an official CLEX checkpoint (Llama).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the CLEX checkpoint.")],
    ignore_log_scale: Annotated[
        bool, typer.Option("--ignore-log-scale", help="Leave out its scaling of queries by the length of the text.")
    ] = False,
) -> None:
    """Write a checkpoint of the official CLEX code as one that `longshort eval --trust-remote-code` reads.

    Example:

    `longshort import-clex DAMO-NLP-SG/CLEX-7B-16K -o clex-7b-16k`
    """
    from longshort.training.extension.official_clex import import_clex

    import_clex(checkpoint, output, ignore_log_scale=ignore_log_scale)


def main() -> None:
    """Entry point of scripts/train.py."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(epilog=EPILOG)(train_command)
    run_app(app)
