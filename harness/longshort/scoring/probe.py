"""What a model is probed with, and whether it is still the model that was probed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# Configuration keys for tokens with a role: padding changes masks, images and audio have embeddings of their own.
SPECIAL_TOKEN = re.compile(r"token_(id|index)s?$|^(pad|bos|eos|unk|mask|sep|cls)_(id|index)$")
POSITIONS = ("max_position_embeddings", "n_positions", "max_target_positions", "max_seq_len")
SCALARS = (bool, int, float, str, type(None))


def probe_tokens(model: nn.Module, length: int) -> Tensor:
    """Ordinary token ids, the same ones whatever the model is used for.

    Args:
        length: number of tokens; fewer where the model has fewer positions.

    Returns:
        Token ids, [1, T], on the CPU. All are 0 where the model does not say how many it knows.
    """
    config: Any = getattr(model, "config", None)
    limits = [getattr(config, name, None) for name in POSITIONS]
    length = min([length, *(limit for limit in limits if isinstance(limit, int) and limit > 1)])
    ordinary = ordinary_tokens(model, length)
    return torch.tensor([[ordinary[position % len(ordinary)] for position in range(length)]])


def ordinary_tokens(model: nn.Module, length: int) -> list[int]:
    """Ids of tokens without a role, at most some `4 * length` of them, spread over the vocabulary.

    All ids where fewer than two have no role; 0 alone where the model does not say how many it knows.
    """
    config: Any = getattr(model, "config", {})
    size = _vocab_size(model, config)
    special = _special_tokens(config if isinstance(config, dict) else config.to_dict())
    ordinary = [token for token in range(0, size, max(1, size // (4 * length))) if token not in special]
    return ordinary if len(ordinary) > 1 else list(range(size))


def model_state(model: nn.Module, backbone: nn.Module | None) -> list[Any]:
    """What decides how logits are computed from the backbone's output, as values that can be compared.

    The modules around the backbone with their hooks, tensors and settings, a replaced `forward`, and the model's
    configuration. The values of weights and what is inside the backbone do not matter.
    """
    config: Any = getattr(model, "config", None)
    hooks = torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks
    state: list[Any] = [config.to_dict() if hasattr(config, "to_dict") else None, *map(tuple, hooks)]
    for module in _modules_around(model, backbone):
        own = module.__dict__
        state += [id(module), type(module), own.get("forward"), own.get("_compiled_call_impl")]
        state += [tuple(module._forward_hooks), tuple(module._forward_pre_hooks)]  # their keys are never used again
        if module is backbone:
            continue
        state += [
            (name, type(tensor), tensor.dtype, tensor.device, tensor.shape)
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]
            if tensor is not None
        ]
        state += [(name, value) for name, each in own.items() if (value := _setting(name, each)) is not None]
    return state


def _modules_around(module: nn.Module, backbone: nn.Module | None) -> Iterator[nn.Module]:
    """A module and all inside it, but of the backbone itself alone."""
    yield module
    if module is not backbone:
        for child in module.children():
            yield from _modules_around(child, backbone)


def _setting(name: str, value: Any) -> Any:
    """A number, a text, or a collection of these (as adapters have it), in a form that does not change with it."""
    if name in ("training", "_is_full_backward_hook", "_is_hf_initialized"):
        return None
    if isinstance(value, dict):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, (list, tuple, set)):
        return tuple(value) if all(isinstance(item, SCALARS) for item in value) else None
    return value if isinstance(value, SCALARS) else None


def _vocab_size(model: nn.Module, config: Any) -> int:
    """The number of token ids that every input embedding knows; 1 if unknown."""
    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]  # a method of every transformers model
    except (AttributeError, NotImplementedError):
        embeddings = None
    if isinstance(embeddings, nn.Module):  # of some audio models a list of embeddings
        sizes: list[Any] = [getattr(module, "num_embeddings", None) for module in embeddings.modules()]
        known = [int(size) for size in sizes if size] or [len(weight) for weight in embeddings.parameters()]
        if known:
            return min(known)
    size = getattr(config, "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else 1


def _special_tokens(config: dict[str, Any]) -> set[int]:
    """Ids of the tokens with a role, also in configurations within the configuration."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _special_tokens(value)
        elif SPECIAL_TOKEN.search(str(name)):
            found |= {item for item in (value if isinstance(value, (list, tuple)) else [value]) if type(item) is int}
    return found
