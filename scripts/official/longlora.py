"""LongLoRA's shifted sparse attention, as it is and in LongQLoRA."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from longshort.training.shifted_attention import shifted_sparse_attention
from official.models import tiny_llama
from official.source import Checkout
from official.table import Comparison, Difference, of_tensors

FILES = {"longlora": "llama_attn_replace.py", "longqlora": "attention/llama_attn_replace.py"}
GROUPS, LENGTH, BATCH = 4, 64, 2
HALF_GROUP = LENGTH // GROUPS // 2

KERNEL = (
    "The FlashAttention kernel, which needs a GPU, is replaced by dense causal attention within the segments that the "
    "official code passes to it (`cu_seqlens`)."
)
WRAP = (
    "Only this official path rotates the sequence, so that half of the heads let the first half group attend to the "
    "last tokens, which come later. Ours does not, and neither does the official path with FlashAttention."
)


def comparisons() -> list[Comparison]:
    """The rows of both repositories."""
    inputs = f"one attention layer in training, {GROUPS} groups of {LENGTH // GROUPS} tokens, batch {BATCH}"
    rows = []
    for name, file in FILES.items():
        flash = f"{inputs}; `forward_flashattn`"
        dense = f"{inputs}; `forward_noflashattn`"
        inner = f"{dense}, without the first half group of the shifted heads"
        for quantity, compared, measure, why in (
            ("attention with FlashAttention", flash, _attention(_flash), KERNEL),
            ("its gradients (q, k, v)", flash, _attention(_flash, gradients=True), KERNEL),
            ("attention without FlashAttention", inner, _attention(_dense, skip_wrapped=True), ""),
            ("attention without FlashAttention, wrap included", dense, _attention(_dense), WRAP),
        ):
            rows.append(Comparison(name, quantity, compared, name, file, measure, why))
    return rows


def _attention(
    official_path: Callable[[Checkout], Any], skip_wrapped: bool = False, gradients: bool = False
) -> Callable[[Checkout], Difference]:
    def measure(checkout: Checkout) -> Difference:
        official = official_path(checkout)
        model = tiny_llama(LENGTH).train()
        layer = model.model.layers[0].self_attn
        nn.init.eye_(layer.o_proj.weight)  # the output of each head by itself
        generator = torch.Generator().manual_seed(3)
        hidden_states, weights = torch.randn(2, BATCH, LENGTH, layer.config.hidden_size, generator=generator)
        no_rotation = torch.ones(1, LENGTH, layer.head_dim), torch.zeros(1, LENGTH, layer.head_dim)  # cos, sin
        expected = official(_as_then(layer), hidden_states)
        with shifted_sparse_attention(model, GROUPS):
            actual, _ = layer(hidden_states, position_embeddings=no_rotation, attention_mask=None)
        if gradients:
            parameters = [layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]
            pairs = (torch.autograd.grad((output * weights).sum(), parameters) for output in (expected, actual))
            return of_tensors(zip(*pairs, strict=True))
        if skip_wrapped:
            pair = [output.unflatten(-1, (2, -1)) for output in (expected, actual)]  # [B, T, half of the heads, H / 2]
            straight, shifted = ([output[:, :, half] for output in pair] for half in (0, 1))
            return of_tensors([straight, [output[:, HALF_GROUP:] for output in shifted]])
        return of_tensors([(expected, actual)])

    return measure


def _as_then(layer: Any) -> SimpleNamespace:
    """What the official forwards read of the attention of transformers 4.34; RoPE is left out on both sides."""
    return SimpleNamespace(
        training=True,
        config=SimpleNamespace(pretraining_tp=1),
        num_heads=layer.config.num_attention_heads,
        num_key_value_heads=layer.config.num_key_value_heads,
        num_key_value_groups=layer.num_key_value_groups,
        head_dim=layer.head_dim,
        hidden_size=layer.config.hidden_size,
        rotary_emb=lambda *_, **__: (None, None),
        **{name: getattr(layer, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
    )


def _dense(checkout: Checkout) -> Callable[[Any, Tensor], Tensor]:
    names = checkout.definitions(FILES[checkout.name], apply_rotary_pos_emb=lambda query, key, *_: (query, key))
    mask = torch.full((LENGTH, LENGTH), torch.finfo(torch.float32).min).triu(1).expand(BATCH, 1, -1, -1)
    return lambda layer, hidden_states: names["forward_noflashattn"](layer, hidden_states, mask)[0]


def _flash(checkout: Checkout) -> Callable[[Any, Tensor], Tensor]:
    names = checkout.definitions(
        FILES[checkout.name],
        apply_rotary_pos_emb=lambda query, key, *_: (query, key),
        flash_attn_varlen_qkvpacked_func=_dense_kernel,
        unpad_input=_unpadded,
        pad_input=lambda tokens, _, rows, length: tokens.unflatten(0, (rows, length)),
    )
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    return lambda layer, hidden_states: names["forward_flashattn"](layer, hidden_states, mask)[0]


def _unpadded(tokens: Tensor, mask: Tensor) -> tuple[Tensor, None, Tensor, int]:
    """flash_attn's `unpad_input` where nothing is padding: tokens, their indices, starts of the rows, longest row."""
    rows, length = mask.shape
    return tokens.flatten(0, 1), None, torch.arange(0, (rows + 1) * length, length, dtype=torch.int32), length


def _dense_kernel(qkv: Tensor, starts: Tensor, *_: Any, softmax_scale: float | None, causal: bool) -> Tensor:
    """flash_attn's variable-length kernel, densely: token i attends to the tokens up to i of its segment."""
    if softmax_scale is not None or not causal:
        raise ValueError("this kernel is causal and scales by 1 / sqrt(d)")
    query, key, value = qkv.unbind(1)  # [N, H, d] each
    index = torch.arange(len(query))
    segment = torch.searchsorted(starts.long(), index, right=True)  # [N]
    visible = (segment[:, None] == segment) & (index[:, None] >= index)  # [N, N]
    scores = torch.einsum("ihd,jhd->hij", query, key) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hij,jhd->ihd", weights, value)
