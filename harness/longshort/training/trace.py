"""What a forward and a backward pass hold in memory, found by running them on tensors without data.

PyTorch's fake tensors have shapes, types and storages, but no contents: every operation runs in microseconds, and
nothing is allocated. The pass is the real one, of any architecture, with autocast, gradient checkpointing, adapters
and dropout; counted is the size of every storage from when it is made until it is freed.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from longshort.scoring.forward import without_wrappers
from longshort.training.regularizer import misalignment_loss


@dataclass(frozen=True)
class Trace:
    """Bytes in addition to the weights, and to the gradients where those are kept from the pass before."""

    activations: int  # at the end of the backbone's forward, without the next
    cast_copies: int  # weights in the type of autocast, at that moment
    forward: int  # the most during the forward; with the logits and their loss, where they are part of it
    backward: int  # the most during the backward


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, as long as they exist.

    Args:
        known: tensors that are not counted.
        weights: of which copies in another type are also counted apart.
    """

    def __init__(self, known: Sequence[Tensor], weights: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's has no types
        self.now = self.peak = self.casts = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self._weights = {tensor.untyped_storage()._cdata for tensor in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count what it makes."""
        result = func(*args, **(kwargs or {}))
        of_weight = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._weights
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._seen:
                size = storage.nbytes()
                self._seen.add(storage._cdata)
                self.now += size
                self.casts += size if of_weight else 0
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage._cdata, size, of_weight)
        return result

    def _free(self, key: int, size: int, of_weight: bool) -> None:
        self._seen.discard(key)
        self.now -= size
        self.casts -= size if of_weight else 0


def trace(
    model: nn.Module,
    rows: int,
    length: int,
    *,
    autocast: bool,
    keeps_gradients: bool,
    dense_alpha: float | None = None,
) -> Trace:
    """Run one forward and one backward of a model of fake tensors.

    Args:
        model: a causal LM, made under the fake tensor mode that is active; in training mode.
        rows, length: shape of its input, both windows on the first axis.
        autocast: whether the forward runs under bfloat16 autocast.
        keeps_gradients: whether gradients of an earlier micro-batch exist already.
        dense_alpha: the weight of the misalignment where the loss is that of whole logits; None: without logits.

    Raises:
        Exception: an operation depends on values, or is unknown to fake tensors.
    """
    weights = list(model.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    if keeps_gradients:
        for weight in trained:
            weight.grad = torch.empty_like(weight)
    known = [*weights, *model.buffers(), *(weight.grad for weight in trained if weight.grad is not None)]
    live = LiveBytes(known, weights)
    causal_lm: Any = without_wrappers(model)
    tokens = torch.zeros(rows, length, dtype=torch.long)
    at_end: list[tuple[int, int]] = []
    handle = causal_lm.base_model.register_forward_hook(lambda *_: at_end.append((live.now, live.casts)))
    try:
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                if dense_alpha is None:
                    output = causal_lm.base_model(input_ids=tokens, use_cache=False)[0]
                else:
                    output = causal_lm(input_ids=tokens, use_cache=False).logits.float()
            loss = output if dense_alpha is None else _dense_loss(output, tokens, dense_alpha)
            forward, live.peak = live.peak, live.now
            gradient = torch.empty_like(loss)
            del output
            loss.backward(gradient)
    finally:
        handle.remove()
    now, casts = at_end[0]
    return Trace(now - casts, casts, forward, live.peak)


def _dense_loss(logits: Tensor, tokens: Tensor, alpha: float) -> Tensor:
    """As the trainer computes it, with as many shared tokens as there can be."""
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    if alpha == 0:
        return loss
    logits_long, logits_short = logits.chunk(2)  # [B, T, V] each
    return loss + alpha * misalignment_loss(logits_long, logits_short, 1).loss
