"""The check of a DeepSpeed configuration against the settings of a run."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from typing import Any

from longshort.errors import UserError
from longshort.results import read_json
from longshort.training.config import TrainConfig

# The optimizer and its schedule are longshort's: DeepSpeed's own would put all weights into one group, with one
# learning rate, and its WarmupLR would replace the schedule.
OURS = {"optimizer": "--optim, --learning-rate and --weight-decay", "scheduler": "--scheduler and --warmup"}
SECTIONS = ("zero_optimization", "bf16", "fp16")  # of which values are read here
GATHERS = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def gradient_accumulation_steps(config: TrainConfig) -> int:
    """Return how many micro-batches of a process make a step, at least 1; DeepSpeed has one device per process."""
    return max(1, config.global_batch_size // (config.batch_size * int(os.environ.get("WORLD_SIZE", "1"))))


def check_deepspeed(config: TrainConfig) -> dict[str, Any]:
    """Return the content of the file `config.deepspeed`, with the values of settings where it has none or "auto".

    Raises:
        UserError: it cannot be read, it contradicts settings, or DeepSpeed is not installed.
    """
    content = read_json(config.deepspeed or "")
    for section, options in OURS.items():
        if section in content:
            raise _contradicts(
                config, f"has a section '{section}'", f"that is decided by {options}. Remove the section"
            )
    for section in SECTIONS:
        if not isinstance(content.get(section, {}), dict):
            raise _contradicts(config, f"has {section} {json.dumps(content[section])}", "that is not a JSON object")
    expected: dict[str, tuple[Any, str]] = {
        "train_micro_batch_size_per_gpu": (config.batch_size, "--batch-size"),
        "gradient_accumulation_steps": (gradient_accumulation_steps(config), "--global-batch-size"),
        "train_batch_size": (config.global_batch_size, "--global-batch-size"),
        "gradient_clipping": (config.max_grad_norm, "--max-grad-norm"),
        "bf16.enabled": (config.dtype == "bfloat16", "--dtype"),
        "fp16.enabled": (False, "--dtype, which has no float16"),
    }
    if _at(content, "zero_optimization.stage") == 3:
        expected[GATHERS] = (True, "--output, which holds whole weights")
    for key, (wanted, option) in expected.items():
        value = _at(content, key)
        if value not in (None, "auto", wanted):
            raise _contradicts(
                config,
                f"has {key} {value}",
                f"the settings give {wanted} ({option}). Change one of them, or write auto",
            )
        # Without one, DeepSpeed would have its own default: it would not clip, for instance.
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = wanted
    if _at(content, "zero_optimization.stage") == 3 and config.is_fused:
        raise _contradicts(
            config, "has zero_optimization.stage 3", "the fused loss cannot gather weights. Add --loss dense"
        )
    if find_spec("deepspeed") is None:
        raise UserError(
            "DeepSpeed is not installed. Install it (pip install deepspeed), or omit --deepspeed.",
            "dependency",
            "deepspeed",
        )
    return content


def _at(content: Any, key: str) -> Any:
    """The value at a path such as ``bf16.enabled``; None where there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _contradicts(config: TrainConfig, what: str, why: str) -> UserError:
    return UserError(f"{config.deepspeed} {what}; {why}.", "setting", "deepspeed")
