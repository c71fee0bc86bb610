"""Compiling a model in training."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from longshort.errors import UserError


def check_compiler() -> None:
    """Compile a function of one line, before anything is loaded.

    Raises:
        UserError: it fails here, for want of a C++ compiler or of Triton for example.
    """
    try:
        torch.compile(torch.cos)(torch.zeros(2))
    except Exception as error:  # each backend raises its own
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"torch_compile does not work here: {reason} Install what is missing, or omit --torch-compile.",
            "dependency",
            "torch_compile",
        ) from error


def compile_layers(model: PreTrainedModel) -> None:
    """Compile the layers of a model with `torch.compile`, in place.

    The layers are compiled one by one, not the model: their inputs have the same shapes in every step, while the loss
    depends on the offset of the step and would be compiled again for each. Names of parameters stay as they are.

    Args:
        model: a causal LM; in a PEFT model the one inside.

    Raises:
        UserError: transformers does not name the class of its layers.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"Models of type '{model.config.model_type}' have no layers that can be compiled. Omit --torch-compile.",
            "unsupported",
            "torch_compile",
        )
    for layer in layers:
        nn.Module.compile(layer)
