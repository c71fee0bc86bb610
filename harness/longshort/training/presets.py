"""Settings by name: the paper's comparison (Du et al., ICML 2025), and a tiny model that trains on any CPU.

Of the paper's runs known are the base, the methods, the lengths, the batch, the steps, and α. The rest follows the
published code of each method, at the commits named in `SOURCES`. The paper's RedPajama-Book has been withdrawn: pass
your own copy with ``--corpus book.jsonl``, or train on PG19.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.training.config import TrainConfig

TINY_MODEL = Path(__file__).with_name("tiny.json")  # Llama over bytes, 0.84M parameters, 128 positions

_PAPER = "Du et al., ICML 2025"
_CLEX_SCRIPT = "CLEX code (023709d), scripts/train_lm.sh"
_CLEX_ZERO = "CLEX code (023709d), playground/deepspeed_zero3_offload.json"
_LONGQLORA = "LongQLoRA code (ade0d97), train_args/llama2-7b-pretrain.yaml"
_LONGPPL = "LongPPL code (1decd2a), finetune/finetune.py"
_LONGPPL_ZERO = "LongPPL code (1decd2a), finetune/deepspeed/zero3.json"
_OURS = "longshort"

# Every value with its source. What a preset does not name has the default of `TrainConfig`.
_COMMON: dict[str, tuple[Any, str]] = {
    "base": ("meta-llama/Llama-2-7b-hf", _PAPER),
    "corpus": ("pg19", f"{_OURS}: the paper's RedPajama-Book has been withdrawn"),
    "steps": (200, _PAPER),
    "global_batch_size": (64, _PAPER),
    "batch_size": (1, f"{_OURS}: a sequence per device"),
    "dtype": ("bfloat16", _CLEX_SCRIPT),
    "gradient_checkpointing": (True, _CLEX_SCRIPT),
    "weight_decay": (0.0, _CLEX_SCRIPT),
    "save_at": ((50, 100), _PAPER),
}

_SOURCED: dict[str, dict[str, tuple[Any, str]]] = {
    "paper-clex": _COMMON
    | {
        "extension": ("clex", _PAPER),
        "factor": (16.0, "CLEX code (023709d), train/argument.py (max_factor)"),
        "extension_options": ({"activation": "tanh"}, "CLEX code (023709d), train/argument.py (clex_act)"),
        "train_length": (4096, _PAPER),
        "learning_rate": (2e-5, _CLEX_SCRIPT),
        # The script says cosine; with DeepSpeed the scheduler of its config, WarmupLR, takes that place.
        "scheduler": ("constant_with_warmup", f"{_CLEX_ZERO} (WarmupLR)"),
        "warmup": (0.03, _CLEX_SCRIPT),
        "betas": ((0.9, 0.999), f"{_CLEX_ZERO} (auto: the Trainer's)"),
        "max_grad_norm": (1.0, f"{_CLEX_ZERO} (auto: the Trainer's)"),
    },
    "paper-longqlora": _COMMON
    | {
        "extension": ("longqlora", _PAPER),
        "train_length": (8192, _PAPER),
        "gradient_checkpointing": (True, _LONGQLORA),
        "dtype": ("bfloat16", f"{_OURS}: LongQLoRA's code uses float16, which needs loss scaling"),
        "weight_decay": (0.0, _LONGQLORA),
        "learning_rate": (2e-4, _LONGQLORA),
        "scheduler": ("constant_with_warmup", _LONGQLORA),
        "warmup": (20.0, _LONGQLORA),
        "betas": ((0.9, 0.999), f"{_LONGQLORA} (the Trainer's)"),
        "max_grad_norm": (0.3, _LONGQLORA),
        "lora_rank": (64, _LONGQLORA),
        "lora_alpha": (16.0, _LONGQLORA),
        "lora_dropout": (0.05, _LONGQLORA),
    },
    # By the group of the paper; Entropy-ABF's own repository has no training code.
    "paper-eabf": _COMMON
    | {
        "extension": ("eabf", _PAPER),
        "factor": (4.0, f"{_LONGPPL} (rope_scaling)"),
        "extension_options": ({"unscaled_layers": 0}, "LongPPL code (1decd2a), finetune/patch/EABF.py"),
        "train_length": (8192, _PAPER),
        "dtype": ("bfloat16", _LONGPPL),
        "gradient_checkpointing": (True, _LONGPPL),
        "weight_decay": (0.0, f"{_LONGPPL_ZERO} (auto: DummyOptim's)"),
        "learning_rate": (2e-5, _LONGPPL),
        "scheduler": ("linear", f"{_LONGPPL_ZERO} (WarmupDecayLR)"),
        "warmup": (20.0, _LONGPPL),
        "betas": ((0.9, 0.95), _LONGPPL_ZERO),
        "max_grad_norm": (1.0, f"{_LONGPPL_ZERO} (auto: accelerate's)"),
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    name: {field: value for field, (value, _) in settings.items()} for name, settings in _SOURCED.items()
}
PRESETS["tiny"] = {
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
}

# Where each value of the paper's presets is from: a paper, a file of published code, or a choice of our own.
SOURCES: dict[str, dict[str, str]] = {
    name: {field: source for field, (_, source) in settings.items()} for name, settings in _SOURCED.items()
}


def preset(name: str, **overrides: Any) -> TrainConfig:
    """Return the settings of a preset with some of them replaced.

    Args:
        name: one of `PRESETS`.
        overrides: fields of `TrainConfig`; `output` must be among them. A base or a config to initialize takes
            the place of the preset's; options of its extension are added to the preset's. Another
            extension takes none of its factor and options; steps to save beyond fewer `steps` are left out.

    Raises:
        UserError: no such preset, or settings that do not go together.
    """
    if name not in PRESETS:
        raise UserError(f"No preset '{name}'. Choose one of {', '.join(PRESETS)}.", "setting", "preset")
    settings = dict(PRESETS[name])
    if "base" in overrides or "model_config" in overrides:
        settings = {key: value for key, value in settings.items() if key not in ("base", "model_config")}
        if "base" in overrides:
            settings.pop("tokenizer", None)  # a base has its own
    options = settings.pop("extension_options", {})
    if overrides.get("extension", settings.get("extension")) == settings.get("extension"):  # of this one alone
        options = options | (overrides.get("extension_options") or {})
        overrides = {**overrides, "extension_options": options or None}
    else:
        settings.pop("factor", None)
    if "steps" in overrides and "save_at" in settings:
        settings["save_at"] = tuple(step for step in settings["save_at"] if step < overrides["steps"])
    return TrainConfig(**(settings | overrides))
