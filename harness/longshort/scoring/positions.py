"""What a model's position handling allows: how far it reaches, and whether length itself matters to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from longshort.scoring.lm_head import evaluating, forward, input_device
from longshort.scoring.prefix import score_prefix
from longshort.scoring.rope import DYNAMIC_ROPE_TYPES, rope_parameters

# A pass over more tokens changes the first ones' NLL by rounding alone if positions do not depend on length.
LENGTH_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}  # mean difference, nats
LENGTH_TOLERANCE_HALF = 2e-2


class _PositionTables(TorchFunctionMode):
    """Watches a forward for tables of which it reads consecutive rows, the way positions are looked up."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.rows: list[int] = []  # rows available to positions, per table

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.embedding and isinstance(args[1], nn.Parameter):  # a cache of sinusoids may grow
            self._note(args[1].shape[0], args[0])  # index [.., T], weight [rows, H]
        elif func in (torch.gather, Tensor.gather):
            self._note_gather(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _note_gather(self, input: Tensor, dim: int, index: Tensor, **_: Any) -> None:
        if dim == 1 and index.ndim > 1:
            self._note(input.shape[1], index.flatten(2)[..., 0] if index.ndim > 2 else index)

    def _note(self, rows: int, index: Tensor) -> None:
        steps = index.reshape(-1, index.shape[-1])[0]
        if len(steps) == self.num_tokens and bool((steps.diff() == 1).all()):
            self.rows.append(rows - int(steps[0]))


@torch.no_grad()
def addressable_length(model: nn.Module) -> int | None:
    """The greatest number of tokens the model has positions for, or None where there is no such end.

    Found by watching one short forward: learned position embeddings (GPT-2, OPT) and tables of sinusoids
    (GPT-J) are read row by row. RoPE, ALiBi and recurrent models have no table. Beyond its end a CPU raises
    IndexError and a GPU aborts the process, so it must be known before.
    """
    # Equal ids are never consecutive, and padding would call up a warning about masks.
    token = int(getattr(getattr(model, "config", None), "pad_token_id", None) == 0)
    tokens = torch.full((1, 8), token, device=input_device(model))
    with evaluating(model), _PositionTables(tokens.shape[1]) as tables:
        forward(model, tokens)
    return min(tables.rows, default=None)


@torch.no_grad()
def depends_on_length(model: nn.Module, tokens: Tensor, lengths: Iterable[int], nll: Tensor) -> bool:
    """Whether reading more tokens changes what is said of the first ones (dynamic NTK, LongRoPE, CLEX).

    The position encodings that do so declare it or not; so, besides the config, one document is read at the
    smallest length and compared with its pass at the greatest. A dependence that is monotone in the length,
    as all known ones are, cannot hide between the two.

    Args:
        model: any `AutoModelForCausalLM`.
        tokens: one document, [1, N].
        lengths: the lengths that shall be read off one pass, in tokens, each ≤ N.
        nll: `score_prefix` of the document at the greatest of them, [1, max(lengths) - 1].
    """
    lengths = sorted(lengths)
    if len(lengths) < 2:
        return False
    if _declares_dependence(getattr(model, "config", None), lengths[-1]):
        return True
    short = score_prefix(model, tokens[:, : lengths[0]])
    difference = (short - nll[:, : short.shape[1]].to(short.device)).abs().mean()
    dtype = getattr(model, "dtype", torch.float32)
    return not float(difference) <= LENGTH_TOLERANCE.get(dtype, LENGTH_TOLERANCE_HALF)  # also where it is NaN


def _declares_dependence(config: Any, longest: int) -> bool:
    """A RoPE type of transformers whose frequencies change beyond the original length."""
    return any(
        rope.get("rope_type") in DYNAMIC_ROPE_TYPES
        and longest > (rope.get("original_max_position_embeddings") or config.max_position_embeddings)
        for rope in rope_parameters(config)
    )
