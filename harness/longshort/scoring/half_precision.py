"""Logits of half-precision LM heads: matrix products with float32 accumulation and float32 output.

An LM head in bfloat16 rounds logits between 16 and 32 to multiples of 0.125, which is more than similar predictions
differ by. The product of two half-precision numbers is exact in float32, so only the order of summation matters here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

HALF = (torch.bfloat16, torch.float16)
# Elements of the matrix, and of the hidden states, whose float32 copies exist at one time.
WEIGHT_ELEMENTS = 2**19  # 2 MiB, which a processor's cache holds
HIDDEN_ELEMENTS = 2**22


@torch.no_grad()
def half_linear_into(out: Tensor, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of half-precision weights, summed in float32 and written into `out` without being rounded.

    Args:
        out: float32, [N, V].
        hidden_states: of the weights' dtype, or float32 numbers that it represents, [N, H].
        weight: bfloat16 or float16, [V, H].
        bias: [V].

    Returns:
        `out`.
    """
    if _multiplies_into_float32(hidden_states.device, weight.dtype):
        torch.mm(hidden_states.to(weight.dtype), weight.T, out_dtype=torch.float32, out=out)
        return out if bias is None else out.add_(bias)
    rows = max(1, HIDDEN_ELEMENTS // weight.shape[1])
    for part, hidden in zip(out.split(rows), hidden_states.split(rows), strict=True):
        _upcast_in_blocks(part, hidden.float(), weight, bias)
    return out


def _upcast_in_blocks(out: Tensor, hidden_states: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """As `half_linear_into`, with a few rows of the matrix in float32 at a time, at most half of them."""
    rows = max(1, min(WEIGHT_ELEMENTS // weight.shape[1], len(weight) // 2))
    buffer = torch.empty(rows, weight.shape[1], device=weight.device)
    for start in range(0, len(weight), rows):
        block = weight[start : start + rows]
        upcast = buffer[: len(block)].copy_(block)
        target = out[:, start : start + rows]
        # With `out`, since autocast does not change such calls.
        if bias is None:
            torch.mm(hidden_states, upcast.T, out=target)
        else:
            torch.addmm(bias[start : start + rows].float(), hidden_states, upcast.T, out=target)


@functools.cache
def _multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies matrices of this dtype into a float32 one: on CUDA, since torch 2.8."""
    if device.type != "cuda":
        return False
    operand = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        torch.mm(operand, operand, out_dtype=torch.float32, out=operand.float())
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


class Float32Logits(TorchFunctionMode):
    """Inside the context, half-precision linear layers with `vocab_size` outputs return float32.

    It is meant for the LM head: what follows its matrix, such as soft caps and scales, is then float32 too.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace the one function, call all others."""
        if func is functional.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # torch's names
        ordinary = type(weight) in (Tensor, nn.Parameter) and type(input) is Tensor and weight.layout == torch.strided
        if not ordinary or weight.dtype not in HALF or len(weight) != self.vocab_size:
            return functional.linear(input, weight, bias)
        out = torch.empty(*input.shape[:-1], len(weight), device=input.device)  # [..., V]
        rows = input.reshape(-1, input.shape[-1]).to(weight.dtype)  # autocast would round float32 here too
        half_linear_into(out.view(-1, len(weight)), rows, weight, bias)
        return out
