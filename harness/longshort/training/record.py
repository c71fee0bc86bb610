"""The record of a checkpoint, ``longshort.json``: how it came about."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from huggingface_hub import try_to_load_from_cache

from longshort import __version__
from longshort.training.base import Base
from longshort.training.config import TrainConfig
from longshort.training.trainer import LOSSES, LongShortTrainer

RECORD = "longshort.json"
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "numpy")
FINAL_STEPS = 10  # final losses are means over this many last steps: one step alone is noisy


def record(
    base: Base, trainer: LongShortTrainer, num_parameters: int, step: int, *, is_best: bool = False
) -> dict[str, Any]:
    """Return what ``longshort.json`` contains for the weights after `step`; see `checkpoint.describe`."""
    config, dataset = trainer.config, trainer.train_dataset
    evaluations = [row for row in trainer.evaluations if row["step"] <= step]
    last = [row for row in trainer.rows if row["step"] <= step][-FINAL_STEPS:]
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
        "steps": step,
        "tokens_seen": step * config.global_batch_size * config.windows * config.train_length,
        "needs_remote_code": base.needs_remote_code,
        "final": {name: fmean(row[name] for row in last) for name in LOSSES if last[0][name] is not None},
        "evaluation": evaluations[-1] if evaluations else None,
        "best": {"value": config.best_value, "step": step} if is_best else None,
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
