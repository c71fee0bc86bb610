"""What LongLoRA trains in full next to an adapter, embeddings and norms, and publishes as ``trainable_params.bin``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file

from longshort.errors import UserError
from longshort.load_errors import load_error
from longshort.scoring.forward import without_wrappers
from longshort.scoring.rope import rope_parameters

FILE = "trainable_params.bin"
PARTS = ("embed", "norm")  # of the names of the parameters, as LongLoRA's code chooses them

logger = logging.getLogger(__name__)


def read_trained_in_full(source: str, revision: str | None = None) -> dict[str, Tensor]:
    """Return the weights in an adapter's ``trainable_params.bin``, named as in the checkpoint.

    Args:
        source: folder or hub name of the adapter, which has the file.
        revision: of the adapter on the hub.

    Raises:
        UserError: the file cannot be read, or holds something else ("broken").
    """
    try:
        weights = torch.load(str(cached_file(source, FILE, revision=revision)), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever its reader does
        wrong = load_error(source, error, "adapter", f"{source}' with its '{FILE}")
        raise UserError(wrong.message, wrong.kind, "peft") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _broken(source, "is not a mapping of names to tensors. Get a complete copy.")
    return dict(weights)


@torch.no_grad()
def load_trained_in_full(model: Any, weights: Mapping[str, Tensor], own: int, source: str) -> None:
    """Copy the weights of `read_trained_in_full` into a checkpoint, with or without the adapter on it, in place.

    Rows of the LM head for new tokens are the mean of the others, as in LongLoRA's training, which freezes them.

    Args:
        model: the checkpoint, its vocabulary resized.
        weights: see above.
        own: number of the checkpoint's embeddings before.
        source: name of the adapter, for messages.

    Raises:
        UserError: names or shapes do not fit, or embeddings or norms are missing ("broken"); the checkpoint's weights
            are offloaded ("unsupported").
    """
    inner: Any = without_wrappers(model)
    named = inner.named_parameters(remove_duplicate=False)  # a shared head may be among the weights
    parameters = {name.replace(".base_layer.", "."): value for name, value in named}
    trained = {name for name in parameters if any(part in name for part in PARTS) and ".lora_" not in name}
    if unknown := sorted(weights.keys() - parameters.keys()):
        raise _broken(source, f"has '{unknown[0]}', which the checkpoint does not have. {_OTHER}")
    if missing := sorted(trained - weights.keys()):
        what = f"{len(missing)} embeddings or norms of the checkpoint, such as '{missing[0]}'"
        raise _broken(source, f"lacks {what}. Get a complete copy, or give the merged model.")
    for name, value in weights.items():
        if value.shape != parameters[name].shape:
            shapes = f"{list(value.shape)}, and in the checkpoint {list(parameters[name].shape)}"
            raise _broken(source, f"has '{name}' of shape {shapes}. {_OTHER}")
        if parameters[name].is_meta:
            raise UserError(
                f"adapter '{source}': its '{FILE}' cannot be loaded into offloaded weights. Use a machine with more "
                "memory, or the merged model.",
                "unsupported",
                "peft",
            )
    head = inner.get_output_embeddings()
    if head is not None and not hasattr(head, "modules_to_save") and len(head.weight) > own:
        head.weight[own:] = head.weight[:own].mean(0)
    for name, value in weights.items():
        parameters[name].copy_(value)
    if all(rope.get("rope_type", "default") == "default" for rope in rope_parameters(inner.config)):
        logger.warning(
            "adapter '%s': LongLoRA trains with linearly scaled RoPE, which an adapter does not record, and the "
            "checkpoint has plain RoPE. If it was trained so, set the RoPE in a copy of the checkpoint's config.json.",
            source,
        )


_OTHER = "Give the checkpoint that it was trained on."


def _broken(source: str, what: str) -> UserError:
    return UserError(f"adapter '{source}': its '{FILE}' {what}", "broken", "peft")
