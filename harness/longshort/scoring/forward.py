"""How a causal LM is run to score tokens: uncompiled, without dropout, with its tokens on its own device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

COMPILED = "_orig_mod"  # what `torch.compile` calls the module that it wraps


def forward(model: Callable[..., Any], tokens: Tensor, **inputs: Any) -> Any:
    """One forward of tokens [B, T], without cache and without a mask: attention takes its causal fast path."""
    return model(input_ids=tokens, use_cache=False, **inputs)


def input_device(model: nn.Module) -> torch.device:
    """The device that tokens must be on: that of the input embedding (a model may be spread over several)."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    module = embedding if isinstance(embedding, nn.Module) else model
    device = next(chain(module.parameters(), module.buffers(), model.parameters())).device  # quantized: only buffers
    if device.type == "meta":  # offloaded weights: accelerate's hook knows where they will run
        device = torch.device(getattr(getattr(module, "_hf_hook", None), "execution_device", "cpu"))
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and training mode back on afterwards in the modules in which it was on."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def without_wrappers(model: nn.Module) -> nn.Module:
    """The causal LM inside a PEFT model, whose adapter layers are part of it, or inside `torch.compile`'s wrapper.

    A compiled model is run uncompiled: its graph cannot be stopped below the LM head. A backbone that is compiled
    alone stays so.
    """
    inner = model._modules.get(COMPILED)
    if inner is None:
        get_base_model = getattr(model, "get_base_model", None)
        inner = get_base_model() if callable(get_base_model) else model
    return model if inner is model else without_wrappers(inner)
