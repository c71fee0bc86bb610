"""The implementation of attention that a model trains with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from longshort.errors import UserError
from longshort.training.config import Attention, TrainConfig


def check_attention(config: TrainConfig) -> None:
    """Refuse an implementation that cannot run here, before a model is loaded.

    Raises:
        UserError: it is not installed, or requires a GPU.
    """
    name = config.attn_implementation
    is_available = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
        "flex_attention": torch.cuda.is_available,
    }
    if name in is_available and not is_available[name]():
        package = "" if name == "flex_attention" else f" and the package of {name}"
        raise UserError(
            f"attn_implementation '{name}' requires a GPU{package}. Choose sdpa or eager.",
            "dependency",
            "attn_implementation",
        )


@contextmanager
def attention_implementation(model: PreTrainedModel, name: Attention) -> Iterator[None]:
    """Switch a model to an implementation of attention while the context is open.

    It is not set when the model is loaded: checks run on the CPU and in float32 then, where some cannot.

    Raises:
        UserError: the model does not support it.
    """
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise _unsupported(model, name) from error
    if model.config._attn_implementation != name:  # where a model has its own, transformers only warns
        raise _unsupported(model, name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _unsupported(model: PreTrainedModel, name: Attention) -> UserError:
    return UserError(
        f"Models of type '{model.config.model_type}' do not support attn_implementation '{name}'. Omit it, or choose "
        "another one.",
        "unsupported",
        "attn_implementation",
    )
