"""CLEX's learned frequencies in training: clipped as a group of their own, in float32 however the model is wrapped."""

from __future__ import annotations

import os

from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from transformers import TrainingArguments

from longshort.errors import UserError
from longshort.training.extension.options import LEARNED_FREQUENCIES


def learned_frequencies(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of CLEX's frequencies; none of any other model."""
    return [parameter for name, parameter in model.named_parameters() if LEARNED_FREQUENCIES in name]


def clip_groups(accelerator: Accelerator, model: nn.Module, max_norm: float) -> tuple[Tensor, Tensor]:
    """Clip the gradients of the frequencies and of all other weights, each group by its own norm.

    The gradient of the frequencies is 0 at t = 1 and has norms in the thousands at large t. One norm for both would
    scale the gradient of the other weights by the t that was drawn.

    Args:
        accelerator: what has prepared the model: a single process, DDP or FSDP 2.
        model: a CLEX model, wrapped or not, with its accumulated gradients.
        max_norm: of each group; infinity only measures.

    Returns:
        Norms before clipping: of the other weights, of the frequencies.
    """
    others = [parameter for name, parameter in model.named_parameters() if LEARNED_FREQUENCIES not in name]
    norms = [accelerator.clip_grad_norm_(group, max_norm) for group in (others, learned_frequencies(model))]
    others_norm, frequencies_norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms)
    return others_norm, frequencies_norm


def check_wrapper(arguments: TrainingArguments) -> None:
    """Refuse to train CLEX where its frequencies cannot be clipped apart, or not be kept in float32.

    Raises:
        UserError: DeepSpeed would clip all gradients by one norm, or trains in bfloat16; FSDP 1 has no gradient per
            parameter.
    """
    if arguments.deepspeed_plugin is not None and arguments.max_grad_norm > 0:
        raise UserError(
            f"max_grad_norm is {arguments.max_grad_norm:g}, and DeepSpeed clips all gradients by one norm; CLEX "
            "requires one for its frequencies and one for the other weights. Use DDP or FSDP 2 (accelerate launch "
            "--use_fsdp --fsdp_version 2), or set max_grad_norm to 0.",
            "setting",
            "max_grad_norm",
        )
    if arguments.deepspeed_plugin is not None and arguments.bf16:
        raise UserError(
            "DeepSpeed in bfloat16 rounds the learned frequencies of CLEX to three digits. Use DDP or FSDP 2 "
            "(accelerate launch --use_fsdp --fsdp_version 2), or --dtype float32.",
            "setting",
            "dtype",
        )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "1":
        raise UserError(
            "FSDP 1 flattens the weights together; CLEX requires float32 and a gradient norm of their own for its "
            "frequencies. Launch with --fsdp_version 2.",
            "setting",
            "extension",
        )
