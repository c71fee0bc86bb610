"""Weights that are published as differences from another checkpoint (lm-eval's `delta=`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longshort.errors import UserError
from longshort.load_errors import load_error


def add_delta(model: nn.Module, auto_class: Any, source: str, checkpoint: str, **options: Any) -> None:
    """Add the differences to a checkpoint's weights, in place.

    lm-eval adds them by name: twice where embedding and LM head are one tensor, and without those that the
    checkpoint does not have.

    Args:
        auto_class: the class that loads it.
        source: folder or hub name of the differences.
        checkpoint: name of the checkpoint, for messages.
        options: further arguments of `from_pretrained`.

    Raises:
        UserError: the differences cannot be loaded, or are not of this checkpoint ("broken"), or its weights are
            quantized or offloaded ("unsupported").
    """
    try:
        delta = auto_class.from_pretrained(source, dtype="auto", **options)
    except (UserError, UserWarning):
        raise
    except Exception as error:  # a damaged checkpoint raises whatever its reader does
        raise load_error(source, error, "delta") from error
    weights, differences = _weights(model), _weights(delta)
    if getattr(model, "hf_quantizer", None) or any(weight.is_meta for weight in weights.values()):
        raise UserError(
            f"delta '{source}' cannot be added to quantized or offloaded weights. Add it to the weights as they were "
            "published, save the sum, and give that.",
            "unsupported",
            "delta",
        )
    for name in sorted(weights.keys() | differences.keys()):
        mine, other = (list(of[name].shape) if name in of else "missing" for of in (weights, differences))
        if mine != other:
            raise UserError(
                f"delta '{source}' is not of checkpoint '{checkpoint}': {name} is {mine} in the checkpoint and {other} "
                "in the delta. Give the checkpoint that it was computed from, with the same vocabulary.",
                "broken",
                "delta",
            )
    with torch.no_grad():
        for name, weight in weights.items():
            weight += differences[name].to(weight)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors by name; one with two names, as a shared embedding, appears once."""
    named = {name: weight for name, weight in model.state_dict(keep_vars=True).items() if weight.is_floating_point()}
    first = {id(weight): name for name, weight in reversed(named.items())}
    return {name: named[name] for name in first.values()}
