"""The backbone of a causal LM, everything below its LM head: which module it is, and how its output is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from longshort.scoring.forward import forward


def output_embedding(model: nn.Module) -> Any:
    """The last layer of the LM head, or None."""
    return getattr(model, "get_output_embeddings", lambda: None)()


def backbones(model: nn.Module, call: Callable[..., Any], tokens: Tensor) -> Iterator[tuple[nn.Module, Any]]:
    """Modules that may be the backbone, with what they return: those that one forward calls once for all tokens.

    First `base_model` and `get_decoder()`. Some models (Llama 4, Mllama) name neither: then the modules in the upper
    two levels that hold a list of layers, those with most parameters first.
    """
    named = (getattr(model, "base_model", None), getattr(model, "get_decoder", lambda: None)())
    levels = [*model.children(), *chain.from_iterable(child.children() for child in model.children())]
    levels = [module for module in levels if any(isinstance(part, nn.ModuleList) for part in module.modules())]
    levels.sort(key=lambda module: -sum(parameter.numel() for parameter in module.parameters()))
    head = output_embedding(model)
    candidates = {
        module: list[Any]()
        for module in (*named, *levels)
        if isinstance(module, nn.Module) and module is not model and module is not head
    }
    with ExitStack() as stack:
        for module, outputs in candidates.items():
            stack.enter_context(intercepting(module, outputs.append))
        forward(call, tokens)
    for module, outputs in candidates.items():
        if len(outputs) == 1 and hidden_of(outputs[0]).shape[:2] == tokens.shape:
            yield module, outputs[0]


def hidden_of(output: Any) -> Tensor:
    """The hidden states in a backbone's output; an empty tensor if there are none."""
    if isinstance(output, tuple):
        output = output[0] if output else None
    hidden = getattr(output, "last_hidden_state", output)
    return hidden if isinstance(hidden, Tensor) else torch.empty(0)


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """The same kind of output around other hidden states."""
    if isinstance(output, Tensor):
        return hidden
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    return type(output)(**{**output, "last_hidden_state": hidden})


@contextmanager
def intercepting(module: nn.Module, intercept: Callable[[Any], Any]) -> Iterator[None]:
    """While open, `intercept` gets what the module returns; if it returns something itself, that takes its place."""
    compiled: Callable[..., Any] | None = module.__dict__.get("_compiled_call_impl")
    if compiled is None:
        handle = module.register_forward_hook(lambda module, args, output: intercept(output))
        try:
            yield
        finally:
            handle.remove()
        return

    def call(*args: Any, **kwargs: Any) -> Any:  # the graph of `module.compile()` does not see new hooks
        output = compiled(*args, **kwargs)
        replaced = intercept(output)
        return output if replaced is None else replaced

    with _replacing(module, "_compiled_call_impl", call):
        yield


@contextmanager
def backbone_returns(backbone: nn.Module, output: Any) -> Iterator[None]:
    """While open, calling the backbone computes nothing and returns `output`."""
    compiled = backbone.__dict__.get("_compiled_call_impl") is not None
    with _replacing(backbone, "_compiled_call_impl" if compiled else "forward", lambda *args, **kwargs: output):
        yield


@contextmanager
def _replacing(module: nn.Module, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While open, the module's attribute is `function`."""
    own: Callable[..., Any] | None = module.__dict__.get(name)  # a forward is set by accelerate on dispatched models
    setattr(module, name, function)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)
