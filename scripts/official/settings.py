"""Training settings: what the published scripts and configurations say, and the presets of the paper's comparison."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import yaml

from longshort.training.extension.options import OPTIONS
from longshort.training.presets import preset
from official.source import Checkout
from official.table import Comparison, Difference

SCHEDULERS = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear"}  # DeepSpeed's, by the Trainer's names

STEPS = "Steps, batch, base and corpus are the paper's (Du et al., ICML 2025) and are not compared. "
CLEX = (
    "The solver's step is 0.1, at a tenth of the cost. The script asks for cosine, but the WarmupLR of its DeepSpeed "
    "configuration replaces it: constant after warm-up, as in the preset. The official activation is tanh since "
    "2024-01, as in the preset; without a preset ours is silu, as in the paper."
)
LONGQLORA = "The official code trains in float16; ours in bfloat16, which needs no loss scaling."
EABF = "Entropy-ABF has no training code. LongPPL trains on 32,768 tokens (20,000 of arXiv), the paper's runs on 8,192."


def comparisons() -> list[Comparison]:
    """A row per preset whose training was published."""
    return [
        Comparison(
            "clex", "training settings", "preset paper-clex", "clex", "scripts/train_lm.sh", _clex, STEPS + CLEX
        ),
        Comparison(
            "longqlora",
            "training settings",
            "preset paper-longqlora",
            "longqlora",
            "train_args/llama2-7b-pretrain.yaml",
            _longqlora,
            STEPS + LONGQLORA,
        ),
        Comparison(
            "eabf", "training settings", "preset paper-eabf", "longppl", "finetune/finetune.py", _eabf, STEPS + EABF
        ),
    ]


def _compared(official: dict[str, Any], name: str) -> Difference:
    """How many values of a preset differ, out of those that official code sets."""
    config = preset(name, output="unused")
    ours = vars(config) | OPTIONS[config.extension] | (config.extension_options or {})
    different = [key for key, value in official.items() if ours[key] != value]
    shown = ", ".join(f"{key} {official[key]}, ours {ours[key]}" for key in different)
    return Difference(len(official), float(len(different)), len(different) / len(official), shown)


def _clex(checkout: Checkout) -> Difference:
    script = dict(re.findall(r"--(\w+) +(\S+)", checkout.text("scripts/train_lm.sh")))
    zero = json.loads(checkout.text(script["deepspeed"]))
    defaults = checkout.definitions("train/argument.py")["ModelArguments"]()
    official = {
        "train_length": int(script["model_max_length"]),
        "learning_rate": float(script["learning_rate"]),
        "weight_decay": float(script["weight_decay"]),
        "warmup": float(script["warmup_ratio"]),
        "scheduler": SCHEDULERS[zero["scheduler"]["type"]],
        "dtype": "bfloat16" if script["bf16"] == "True" else "float32",
        "gradient_checkpointing": script["gradient_checkpointing"] == "True",
        "factor": float(defaults.max_factor),
        "hidden_multiplier": defaults.param_factor,
        "activation": defaults.clex_act,
        "step": defaults.time_dt,
    }
    return _compared(official, "paper-clex")


def _longqlora(checkout: Checkout) -> Difference:
    given = yaml.safe_load(checkout.text("train_args/llama2-7b-pretrain.yaml"))
    same = ("learning_rate", "lora_rank", "lora_alpha", "lora_dropout", "gradient_checkpointing", "weight_decay")
    official = {name: given[name] for name in (*same, "max_grad_norm")} | {
        "train_length": given["max_seq_length"],
        "warmup": given["warmup_steps"],
        "scheduler": given["lr_scheduler_type"],
        "dtype": "float16" if given["fp16"] else "float32",
    }
    return _compared(official, "paper-longqlora")


def _eabf(checkout: Checkout) -> Difference:
    text = checkout.text("finetune/finetune.py")
    zero = json.loads(checkout.text("finetune/deepspeed/zero3.json"))
    defaults = {
        node.args[0].value: keyword.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for keyword in node.keywords
        if keyword.arg == "default"
    }
    official = {
        "learning_rate": defaults["--learning-rate"],
        "warmup": defaults["--warmup-steps"],
        "scheduler": SCHEDULERS[zero["scheduler"]["type"]],
        "betas": tuple(zero["optimizer"]["params"]["betas"]),
        "train_length": int(re.search(r"stride = 20000 if .* else (\d+)", text)[1]),
        "dtype": {"bf16": "bfloat16"}[re.search(r'mixed_precision="(\w+)"', text)[1]],
        "gradient_checkpointing": "model.gradient_checkpointing_enable()" in text,
        "unscaled_layers": 0,  # its `apply_eabf` changes no layer, see eabf.py
    }
    return _compared(official, "paper-eabf")
