"""Forward passes of a half-precision model in float64, without a float64 copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
PLAIN_ATTENTION = ("eager", "sdpa")  # the others have kernels of their own, in half precision only


class _Float64(TorchDispatchMode):
    """Runs each operation on float64 copies of its inputs, so that only one weight is held in float64 at a time."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:  # a copy would not be a view
            return func(*args, **kwargs)
        if func is torch.ops.aten.embedding.default:  # of a large table a few rows are read
            return _double(func(*args, **kwargs))
        written = _written(func, args, kwargs)
        if any(tensor.dtype in FLOATS for tensor in written):  # a tensor of the model's own
            return func(*args, **kwargs)
        args, kwargs = tree_map(_double, args), tree_map(_double, kwargs)
        return tree_map(_double, func(*args, **kwargs))


class _Float64Convolutions(TorchFunctionMode):
    """Convolutions compare the dtypes of their inputs before `_Float64` sees them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in CONVOLUTIONS:
            args, kwargs = tree_map(_double, args), tree_map(_double, kwargs)
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    """Convert floating-point tensors and dtypes to float64; return anything else unchanged."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in FLOATS else value
    return torch.float64 if isinstance(value, torch.dtype) and value in FLOATS else value


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensor arguments that an operation writes to."""
    arguments = func._schema.arguments
    values = [
        args[index] if index < len(args) else kwargs.get(arguments[index].name) for index in range(len(arguments))
    ]
    pairs = zip(arguments, values, strict=True)
    return [value for argument, value in pairs if argument.is_write and isinstance(value, Tensor)]


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Inside the context, forward passes of the model compute in float64; afterwards the model is as it was before.

    One weight at a time is converted. Operations that PyTorch does not dispatch (kernels of quantized weights) compute
    as usual. Attention and experts run in plain PyTorch, since their fused kernels do not support float64.
    """
    state = [
        (module, dict(module.__dict__), dict(module._buffers), dict(module._parameters)) for module in model.modules()
    ]
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    attributes = [(config, dict(vars(config))) for config in configs.values()]
    try:
        for config, own in attributes:
            if own.get("_attn_implementation_internal") not in (None, *PLAIN_ATTENTION):
                vars(config)["_attn_implementation_internal"] = "eager"
            if own.get("_experts_implementation_internal") is not None:
                vars(config)["_experts_implementation_internal"] = "eager"
        float64 = _Float64()  # type: ignore[no-untyped-call]  # torch's class has no annotations
        with torch.compiler.set_stance("force_eager"), float64, _Float64Convolutions():
            yield
    finally:
        for config, own in attributes:
            vars(config).update(own)
        for module, own, buffers, parameters in state:  # such as frequencies that were computed anew
            module.__dict__.update(own)
            module._buffers.clear()
            module._buffers.update(buffers)
            module._parameters.clear()  # accelerate replaces those that are offloaded, here by some in float64
            module._parameters.update(parameters)
