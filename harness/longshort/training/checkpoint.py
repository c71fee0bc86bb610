"""A finished checkpoint: model and tokenizer for `from_pretrained`, and the record of how it came about."""

from __future__ import annotations

import csv
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from longshort import __version__
from longshort.training.base import Base, load_model
from longshort.training.config import TrainConfig
from longshort.training.figure import training_figure
from longshort.training.lora import merged, trained_state
from longshort.training.trainer import LOSSES, LongShortTrainer

RECORD = "longshort.json"
LOG = "training_log.csv"
EVALUATION_LOG = "evaluation_log.csv"
FIGURE = "training.png"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")
FINAL_STEPS = 10  # final losses are means over this many last steps: one step alone is noisy


def write_checkpoint(folder: Path, work: Path, base: Base, trainer: LongShortTrainer, num_parameters: int) -> None:
    """Write what training has reached into `work` and rename it to `folder`: it is whole or not there.

    All processes of a launch must call it, since sharded weights are gathered; the main one writes.

    Raises:
        UserError: with adapters, the base cannot be loaded again.
        OSError: the folder cannot be written to.
    """
    config, writes = trainer.config, trainer.args.should_save
    if writes:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    if config.rank_of_adapters:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if writes:
            trained = trained_state(trainer.accelerator.unwrap_model(trainer.model_wrapped), state)
            with torch.random.fork_rng():  # new adapters are drawn; training goes on as if they were not
                fresh = load_model(config, base)  # the training base may be in 4 bits, and trains on
                model = merged(fresh, config.rank_of_adapters, config.lora_alpha, trained, base.trained_in_full)
            model.save_pretrained(work)
    else:
        trainer.save_model(str(work))
        (work / "training_args.bin").unlink(missing_ok=True)  # the Trainer's pickle; ours is the record
    if writes:
        base.tokenizer.save_pretrained(work)
        _write_logs(work, trainer)
        record = _record(base, trainer, num_parameters)
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # the same snapshot, of before the run was killed
        work.rename(folder)
    trainer.accelerator.wait_for_everyone()


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


def _record(base: Base, trainer: LongShortTrainer, num_parameters: int) -> dict[str, Any]:
    config, dataset = trainer.config, trainer.train_dataset
    rows, evaluations, steps = trainer.rows, trainer.evaluations, trainer.state.global_step
    last = rows[-FINAL_STEPS:]
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    corpus = dataset.corpus
    return {
        "base": config.base or config.model_config,
        "extension": config.extension,
        "factor": config.factor,
        "extension_options": config.extension_options,
        "alpha": config.alpha,
        "divergence": config.divergence,
        "train_length": config.train_length,
        "seed": config.seed,
        "steps": steps,
        "tokens_seen": steps * config.global_batch_size * config.windows * config.train_length,
        "needs_remote_code": base.needs_remote_code,
        "final": {name: fmean(row[name] for row in last) for name in LOSSES if last[0][name] is not None},
        "evaluation": evaluations[-1] if evaluations else None,
        "config": settings,
        "model": {
            "commit": _commit(config),
            "type": base.config.model_type,
            "num_parameters": num_parameters,
            "rope_parameters": getattr(base.config, "rope_parameters", None),
            "max_position_embeddings": getattr(base.config, "max_position_embeddings", None),
        },
        "corpus": {
            "spec": corpus.spec,
            "source": corpus.source,
            "revision": corpus.revision,
            "split": corpus.split,
            "documents": dataset.reading.num_documents,
            "sha256": dataset.reading.sha256,
        },
        "versions": {
            "longshort": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
    }


def _commit(config: TrainConfig) -> str | None:
    """The commit of a base from the hub, which the hub's cache names its folders after."""
    if config.base is None or Path(config.base).exists():
        return None
    path = try_to_load_from_cache(config.base, "config.json", revision=config.revision)
    return Path(path).parent.name if isinstance(path, str) else None
