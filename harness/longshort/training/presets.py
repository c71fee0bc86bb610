"""Settings by name: the paper's comparison (Du et al., ICML 2025), and a tiny model that trains on any CPU.

Of the paper's runs known are the base, the methods, the lengths, batch 64, at most 200 steps, and α. Learning
rates and schedules are those of CLEX (Chen et al., 2024) and LongQLoRA (Yang, 2023); EABF's are CLEX's. The
paper's RedPajama-Book has been withdrawn: pass your own copy with ``--corpus book.jsonl``, or train on PG19.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.training.config import TrainConfig

TINY_MODEL = Path(__file__).with_name("tiny.json")  # Llama over bytes, 0.84M parameters, 128 positions

_PAPER: dict[str, Any] = {
    "base": "meta-llama/Llama-2-7b-hf",
    "corpus": "pg19",
    "steps": 200,
    "global_batch_size": 64,
    "batch_size": 1,
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "save_at": (50, 100),
}

PRESETS: dict[str, dict[str, Any]] = {
    "paper-clex": _PAPER | {"extension": "clex", "factor": 16.0, "train_length": 4096},
    "paper-longqlora": _PAPER
    | {
        "extension": "longqlora",
        "train_length": 8192,
        "learning_rate": 2e-4,
        "scheduler": "constant_with_warmup",
        "warmup": 20.0,
        "max_grad_norm": 0.3,
    },
    "paper-eabf": _PAPER | {"extension": "eabf", "factor": 4.0, "train_length": 8192},
    "tiny": {
        "model_config": str(TINY_MODEL),
        "tokenizer": "bytes",
        "corpus": "builtin",
        "train_length": 128,
        "steps": 200,
        "global_batch_size": 8,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup": 0.05,
        "weight_decay": 0.1,
    },
}


def preset(name: str, **overrides: Any) -> TrainConfig:
    """Return the settings of a preset with some of them replaced.

    Args:
        name: one of `PRESETS`.
        overrides: fields of `TrainConfig`; `output` must be among them. A base or a config to initialize takes
            the place of the preset's.

    Raises:
        UserError: no such preset, or settings that do not go together.
    """
    if name not in PRESETS:
        raise UserError(f"No preset '{name}'. Choose one of {', '.join(PRESETS)}.", "setting", "preset")
    settings = PRESETS[name]
    if "base" in overrides or "model_config" in overrides:
        settings = {key: value for key, value in settings.items() if key not in ("base", "model_config")}
        if "base" in overrides:
            settings.pop("tokenizer", None)  # a base has its own
    return TrainConfig(**(settings | overrides))
