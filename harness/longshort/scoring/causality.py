"""Whether a model is causal: predictions that depend on later tokens are not next-token distributions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from longshort.errors import UserError, first_line
from longshort.scoring.forward import evaluating, forward, input_device
from longshort.scoring.positions import addressable_length
from longshort.scoring.probe import ordinary_tokens

PROBE_TOKENS = 16
# Mean change of the logits before the replaced tokens, relative to that from there on. A causal model has no change,
# or one by rounding, where experts get other numbers of tokens; an untrained encoder in bfloat16 has 2e-3.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5}
TOLERANCE_HALF = 5e-4
NOISE_FACTOR = 5
NOISE_PROBES = 3

# What a forward raises that needs other inputs than token ids.
READ_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_causal: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # with the configuration it was probed with


@torch.no_grad()
def require_causal(model: Any) -> None:
    """Refuse a model whose predictions depend on later tokens.

    transformers also loads encoders (BERT, XLNet, XLM, CPM-Ant) and models with bidirectional attention
    (``is_causal: false``, ``use_bidirectional_attention``) as causal ones, at most with a warning. Which ones these
    are is not in their configurations, so every model is probed, once: do other tokens in the second half of a short
    sequence change the logits in its first half?

    Raises:
        UserError: they do, or the model does not read a sequence of token ids (kind "unsupported").
    """
    config = str(getattr(model, "config", None))
    if _causal.get(model) == config:
        return
    tokens = _probe_tokens(model)  # [3 + NOISE_PROBES, T]
    with evaluating(model):  # dropout would change the logits too
        logits = _read(model, tokens[:1])[0]  # [T, V]
        ratio = _change(logits, _read(model, tokens[1:2])[0])
        tolerance = TOLERANCE.get(logits.dtype, TOLERANCE_HALF)
        if ratio > tolerance and ratio > NOISE_FACTOR * _noise(model, tokens):
            raise UserError(
                f"Cannot use {_name(model)}: its predictions depend on later tokens, so they are not next-token "
                "distributions. Use a causal model. If this one can be causal, set that in its config.json "
                "(is_decoder or is_causal: true; causal: true for XLM; use_bidirectional_attention: false for Gemma).",
                "unsupported",
            )
    _causal[model] = config


def causal_length(model: Any) -> int | None:
    """The greatest number of tokens that a model reads causally, or None if there is no limit.

    Only the LSH attention of Reformer has one. Beyond a chunk it sorts the tokens by random hashes, so the chunks that
    earlier tokens are in, and what they see, depend on later tokens and change from one forward to the next.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) == "reformer" and "lsh" in config.attn_layers:
        return int(config.lsh_attn_chunk_length)
    return None


def _probe_tokens(model: Any) -> Tensor:
    """Two sequences that differ in every token of their second half, and unrelated ones, [3 + NOISE_PROBES, T]."""
    with _reading(model):
        length = min(PROBE_TOKENS, addressable_length(model) or PROBE_TOKENS)
    choice = torch.tensor(ordinary_tokens(model, PROBE_TOKENS), device=input_device(model))
    position = torch.arange(length, device=choice.device)
    half = (position >= (length + 1) // 2).long()  # the first half is the longer one, as `chunk` makes it
    others = [(2 * row + 3) * position + row for row in range(1 + NOISE_PROBES)]
    return choice[torch.stack([position, position + half, *others]) % len(choice)]


def _read(model: Any, tokens: Tensor) -> Tensor:
    """Logits of short sequences.  [B, T] → [B, T, V]."""
    with _reading(model):
        logits = forward(model, tokens).logits
        if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError("its logits are not one row for each token")
    return logits


@contextmanager
def _reading(model: Any) -> Iterator[None]:
    """Refuse a model that needs other inputs, or answers with something else than logits (kind "unsupported")."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except READ_ERRORS as error:
        raise UserError(
            f"Cannot use {_name(model)}: it cannot read token ids alone ({first_line(error)}). Use a causal language "
            "model that needs no other inputs.",
            "unsupported",
        ) from error


def _change(logits: Tensor, changed: Tensor) -> float:
    """Mean change in the first half of a sequence, relative to that in its second half.  [T, V], [T, V] → number."""
    before, after = (logits - changed).abs().double().chunk(2)
    return float(before.mean() / after.mean().clamp_min(1e-30))


def _noise(model: Any, tokens: Tensor) -> float:
    """The change by rounding alone, as `_change`: what other sequences in the same batch do to the first one."""
    first, *others = (_read(model, tokens[[0, row]])[0].double() for row in range(2, len(tokens)))  # [T, V] each
    after = (_read(model, tokens[[1, 2]])[0] - first).abs().chunk(2)[1]
    return float(max((first - other).abs().mean() for other in others) / after.mean().clamp_min(1e-30))


def _name(model: Any) -> str:
    return f"'{getattr(getattr(model, 'config', None), 'model_type', '') or type(model).__name__}'"
