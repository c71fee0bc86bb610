"""EABF: an adjusted base frequency with entropy-aware queries, for Llama, Mistral, Qwen2 and Qwen3.

Zhang et al., *Extending LLMs' Context Window with 100 Samples* (2024). A checkpoint carries this file, so that
``from_pretrained(DIR, trust_remote_code=True)`` opens it; it needs torch and transformers only.

RoPE's base θ is raised (``rope_parameters["rope_theta"]``, 500,000 by default). The query at position i, from 0, is
scaled by max(1, ln(i + 1) / ln L0), L0 = ``eabf_original_length`` being the length of the base, in all layers
but the first ``eabf_unscaled_layers``: 2 in the paper, 0 in its published code.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward


def query_scale(position_ids: Tensor, original_length: int) -> Tensor:
    """max(1, ln(i + 1) / ln L0) of every position i, same shape, float32."""
    return (torch.log(position_ids.float() + 1) / math.log(original_length)).clamp_min(1)


class EabfAttention:
    """What the attentions share: queries that are scaled after RoPE."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        *,
        position_ids: Tensor,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[B, T, H] → [B, T, H], and the attention weights where the implementation keeps them."""
        attention: Any = self
        config = attention.config
        shape = (*hidden_states.shape[:-1], -1, attention.head_dim)
        query = attention.q_proj(hidden_states).view(shape)  # [B, T, heads, head_dim]
        key = attention.k_proj(hidden_states).view(shape)
        value = attention.v_proj(hidden_states).view(shape).transpose(1, 2)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query, key = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *position_embeddings)
        if attention.layer_idx >= config.eabf_unscaled_layers:
            scale = query_scale(position_ids, config.eabf_original_length)[:, None, :, None]  # [B, 1, T, 1]
            query = (query * scale).to(query.dtype)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, attention.layer_idx)
        # Mistral has one window for all layers, Qwen one of its own for each, Llama none.
        window = getattr(attention, "sliding_window", getattr(config, "sliding_window", None))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            attention,
            query,
            key,
            value,
            attention_mask,
            dropout=attention.attention_dropout if attention.training else 0.0,
            scaling=attention.scaling,
            sliding_window=window,
            position_ids=position_ids,
            **kwargs,
        )
        return attention.o_proj(output.reshape(*hidden_states.shape[:-1], -1).contiguous()), weights


class EabfConfig:
    """What the configs share."""

    _auto_class = "AutoConfig"


class EabfModel:
    """What the backbones share: their attention."""

    attention_class: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]  # a mixin: the stock class comes next
        for index, layer in enumerate(self.layers):  # type: ignore[attr-defined]  # a mixin: the stock class comes next
            layer.self_attn = self.attention_class(config, index)
        self.post_init()  # type: ignore[attr-defined]  # a mixin: the stock class comes next


class EabfForCausalLM:
    """What the causal LMs share: the backbone."""

    _auto_class = "AutoModelForCausalLM"
    backbone_class: Any

    def __init__(self, config: Any) -> None:
        PreTrainedModel.__init__(self, config)
        self.model = self.backbone_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]  # a mixin: the stock class comes next


def _build_classes(architecture: str) -> Any:
    """Build the EABF classes of one architecture from the stock ones, and return the causal LM.

    Each class becomes a name of this module, ``Eabf`` and the stock name: `auto_map` of a checkpoint refers to it.
    """
    lower = architecture.lower()
    stock = import_module(f"transformers.models.{lower}.modeling_{lower}")

    def subclass(mixin: type, kind: str, **attributes: Any) -> Any:
        name = f"Eabf{architecture}{kind}"
        globals()[name] = built = type(name, (mixin, getattr(stock, f"{architecture}{kind}")), attributes)
        return built

    config_class = subclass(EabfConfig, "Config", model_type=f"longshort_eabf_{lower}")
    attention_class = subclass(EabfAttention, "Attention")
    backbone_class = subclass(EabfModel, "Model", config_class=config_class, attention_class=attention_class)
    return subclass(EabfForCausalLM, "ForCausalLM", config_class=config_class, backbone_class=backbone_class)


CAUSAL_LMS: dict[str, Any] = {name.lower(): _build_classes(name) for name in ("Llama", "Mistral", "Qwen2", "Qwen3")}
