"""Shifted sparse attention: in training, every head attends within short groups of tokens.

From LongLoRA (Chen et al., ICLR 2024), as LongQLoRA uses it. T tokens make `groups` groups of g = T / groups. Half
of the heads attend within the groups; the other half within segments that are shifted by half a group, so that
information passes from group to group. They are g/2, g, ..., g, g/2 long and nothing wraps around, as in LongLoRA's
code with FlashAttention. Without it that code, and LongQLoRA's by default, rotates the sequence instead, which puts its
first g/2 tokens into one group behind its last ones and lets them see those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longshort.errors import UserError


@contextmanager
def shifted_sparse_attention(model: PreTrainedModel, groups: int = 4) -> Iterator[None]:
    """Switch a model to shifted sparse attention while the context is open, then back to what it had.

    It acts where the model is in training mode; in evaluation mode attention is plain: causal, over everything.
    Nothing of it is saved with the model.

    Args:
        model: a causal LM.
        groups: into which a sequence is divided; see `check_groups`.

    Raises:
        UserError: the model's attention cannot be exchanged. In a forward in training mode: the length cannot be
            divided, or more is masked than later tokens (padding, a sliding window).
    """
    name = f"shifted_sparse_{groups}"
    AttentionInterface.register(name, partial(_attend, groups=groups))
    AttentionMaskInterface.register(name, sdpa_mask)
    before = model.config._attn_implementation
    # transformers has no public question for it, and where the answer is no it only warns. Some of its versions say
    # yes of models that cap their scores, which would be lost.
    caps_scores = getattr(model.config, "attn_logit_softcapping", None) is not None
    if caps_scores or not (model._can_set_attn_implementation() and model._supports_sdpa):
        raise UserError(
            f"Shifted sparse attention needs a model whose attention can be exchanged; '{model.config.model_type}' "
            "has its own. Use another --extension.",
            "unsupported",
            "extension",
        )
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def check_groups(length: int, groups: int) -> None:
    """Refuse a length that does not divide into groups and their halves.

    Raises:
        UserError: as said, or there is but one group.
    """
    if groups < 2:
        raise UserError(
            f"groups is {groups}; shifted sparse attention requires at least 2.", "setting", "extension_options"
        )
    if length % (2 * groups):
        raise UserError(
            f"Shifted sparse attention divides a window into {groups} groups and these into halves: "
            f"train_length {length} must be a multiple of {2 * groups}.",
            "setting",
            "train_length",
        )


def _attend(
    module: nn.Module,
    query: Tensor,  # [B, H, T, D]
    key: Tensor,  # [B, H', T, D], H' dividing H
    value: Tensor,  # [B, H', T, D]
    attention_mask: Tensor | None,  # None where every token sees all before it
    *,
    groups: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Outputs [B, T, H, D] and no attention weights, as transformers' attention functions return them."""
    if not module.training:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return plain
    if attention_mask is not None:
        raise UserError(
            "Shifted sparse attention takes no padding, and no model whose own sliding window is shorter than "
            "train_length. Use another model, or another --extension.",
            "unsupported",
            "extension",
        )
    length, num_heads = query.shape[2], query.shape[1]
    check_groups(length, groups)
    repeats = num_heads // key.shape[1]
    heads = (query, repeat_kv(key, repeats), repeat_kv(value, repeats))  # [B, H, T, D] each
    within = partial(_within_segments, dropout=dropout, scaling=scaling)
    group = length // groups
    half, last = group // 2, length - group // 2
    straight = [tensor[:, : num_heads // 2] for tensor in heads]
    shifted = [tensor[:, num_heads // 2 :] for tensor in heads]
    ends = within([torch.cat([tensor[:, :, :half], tensor[:, :, last:]], dim=2) for tensor in shifted], half)
    middle = within([tensor[:, :, half:last] for tensor in shifted], group)
    joined = torch.cat([ends[:, :, :half], middle, ends[:, :, half:]], dim=2)
    outputs = torch.cat([within(straight, group), joined], dim=1)  # [B, H, T, D]
    return outputs.transpose(1, 2).contiguous(), None


def _within_segments(heads: list[Tensor], length: int, *, dropout: float, scaling: float | None) -> Tensor:
    """Attend causally within consecutive segments of `length` tokens: queries, keys, values to [B, H, T, D]."""
    batch = len(heads[0])
    parts = [tensor.unflatten(2, (-1, length)) for tensor in heads]  # [B, H, S, length, D]
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in parts)  # [B·S, H, length, D]
    outputs = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scaling)
    joined: Tensor = outputs.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)
    return joined
