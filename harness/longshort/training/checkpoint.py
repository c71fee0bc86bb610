"""A finished checkpoint: model and tokenizer for `from_pretrained`, and the record of how it came about."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longshort.errors import UserError
from longshort.results import read_json
from longshort.training.base import Base, load_model
from longshort.training.figure import training_figure
from longshort.training.lora import lora_modules, merged, save_adapter, trained_state
from longshort.training.model_card import model_card
from longshort.training.record import RECORD, record
from longshort.training.save_dtype import convert_weights
from longshort.training.trainer import LongShortTrainer

LOG = "training_log.csv"
EVALUATION_LOG = "evaluation_log.csv"
FIGURE = "training.png"
CARD = "README.md"


def write_checkpoint(folder: Path, work: Path, base: Base, trainer: LongShortTrainer, num_parameters: int) -> None:
    """Write what training has reached into `work` and rename it to `folder`: it is whole or not there.

    All processes of a launch must call it, since sharded weights are gathered; the main one writes.

    Raises:
        UserError: with adapters, the base cannot be loaded again; no weights were written.
        OSError: the folder cannot be written to.
    """
    config, writes = trainer.config, trainer.args.should_save
    if writes:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    if config.rank_of_adapters:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if writes:
            _write_adapted(work, base, trainer, state)
    else:
        trainer.save_model(str(work))
        (work / "training_args.bin").unlink(missing_ok=True)  # the Trainer's pickle; ours is the record
    if writes:
        _check_weights(work)
        convert_weights(work, getattr(torch, config.save_dtype))
        base.tokenizer.save_pretrained(work)
        describe(work, base, trainer, num_parameters, trainer.state.global_step, folder.name)
        shutil.rmtree(folder, ignore_errors=True)  # the same snapshot, of before the run was killed
        work.rename(folder)
    trainer.accelerator.wait_for_everyone()


def describe(
    folder: Path,
    base: Base,
    trainer: LongShortTrainer,
    num_parameters: int,
    step: int,
    name: str,
    *,
    is_best: bool = False,
) -> None:
    """Write next to the weights how they came about: logs, figure, record and model card.

    Args:
        folder: of the weights.
        base: what the run started from.
        trainer: which has trained them.
        num_parameters: of the model, without adapters.
        step: after which the weights were taken.
        name: of the finished folder.
        is_best: whether this step was chosen by `keep_best`.
    """
    _write_logs(folder, trainer)
    facts = record(base, trainer, num_parameters, step, is_best=is_best)
    if is_best:  # written when its step was reached: what had been read then
        facts["corpus"] = read_json(folder / RECORD)["corpus"]
    is_last = is_best or step == trainer.config.steps
    (folder / RECORD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    (folder / CARD).write_text(model_card(name, facts, is_pushed=is_last), "utf-8")


def _check_weights(folder: Path) -> None:
    """Refuse to call a folder finished that has no weights: what shards a model may not have gathered them."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            "No weights were written: what shards the model has not gathered them. Use FSDP 2, or ZeRO stage 3 with "
            "--zero3_save_16bit_model true; the same command then resumes from the last step that was saved.",
            "unwritable",
            "output",
        )


def _write_adapted(folder: Path, base: Base, trainer: LongShortTrainer, state: dict[str, Any]) -> None:
    config = trainer.config
    adapted = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    if config.keep_adapter:
        save_adapter(adapted, folder, state, config.base, config.revision)
        return
    trained = trained_state(adapted, state)
    with torch.random.fork_rng():  # new adapters are drawn; training continues as if they were not
        fresh = load_model(config, base)  # the training base may be in 4 bits, and trains on
        rank, alpha = config.rank_of_adapters, config.lora_alpha
        model = merged(fresh, rank, alpha, trained, base.trained_in_full, **lora_modules(config))
    model.save_pretrained(folder)


def _write_logs(folder: Path, trainer: LongShortTrainer) -> None:
    rows, evaluations = trainer.rows, trainer.evaluations
    _write_csv(folder / LOG, rows)
    if evaluations:
        _write_csv(folder / EVALUATION_LOG, evaluations)
    training_figure(rows, evaluations, folder / FIGURE)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
