"""The tiny Llama of the comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longshort.training.extension import extend_context

VOCABULARY = 97
INITIALIZER_RANGE = 0.1  # five times the usual: attention and positions change the logits


def tiny_config(positions: int, theta: float = 10_000.0, **fields: Any) -> LlamaConfig:
    """Two layers, four heads of 16 dimensions, two key-value heads."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        initializer_range=INITIALIZER_RANGE,
        attn_implementation="sdpa",
        **shape | heads | fields,
    )


def tiny_llama(positions: int, **fields: Any) -> LlamaForCausalLM:
    """A stock Llama with random weights, in evaluation mode."""
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(positions, **fields)).eval()


def extended(stock: LlamaForCausalLM, extension: Any, **settings: Any) -> Any:
    """The same weights in the model that `longshort train` would build, in evaluation mode."""
    copied = type(stock.config).from_dict(stock.config.to_dict())
    torch.manual_seed(1)
    config, model_class = extend_context(copied, extension, **settings)
    build = getattr(model_class, "from_config", model_class._from_config)
    model = build(config, attn_implementation="sdpa").eval()
    _, unexpected = model.load_state_dict(stock.state_dict(), strict=False)
    if unexpected:
        raise ValueError(f"the extended model has no {unexpected[0]}")
    return model


def random_tokens(rows: int, length: int) -> Tensor:
    """Random token ids, [rows, length]."""
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))
