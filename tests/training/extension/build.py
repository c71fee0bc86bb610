"""Tiny extended models, and a dense, slow, obvious forward of the architectures that CLEX and EABF are made for."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from longshort.training.extension import extend_context
from longshort.training.extension.options import check_extension

LENGTH = 16  # L0, the base's own
VOCAB = 61
THETA = 5000.0
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def base_config(architecture="llama", **changes):
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LENGTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": THETA},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture == "mistral":
        fields["sliding_window"] = None
    if architecture == "qwen3":
        fields["head_dim"] = 8
    return AutoConfig.for_model(architecture, **fields | changes)


def settings(extension, train_length=2 * LENGTH, factor=None, extension_options=None):
    """Arguments of `extend_context`, checked as those of a run are."""
    check_extension(extension, factor, extension_options)
    return {
        "extension": extension, "train_length": train_length, "factor": factor, "options": extension_options,
    }  # fmt: skip


def extended(extension, architecture="llama", *, base=None, model_changes=None, seed=0, **changes):
    """A random model, extended; larger weights than usual, so that positions make a difference."""
    if base is None:
        base = base_config(architecture, **model_changes or {})
    config, model_class = extend_context(base, **settings(extension, **changes))
    torch.manual_seed(seed)
    build = model_class.from_config if model_class is AutoModelForCausalLM else model_class._from_config
    model = build(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "rotary_emb" not in name:
                parameter.mul_(8)
    return model


def tokens(length, batch=1, seed=0):
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))  # [B, T]


@torch.no_grad()
def dense_logits(model, token_ids, frequencies, *, positions=None, query_scale=lambda layer, i: 1.0, window=None):
    """Logits of one sequence [T], head by head and query by query in float64, [T, V].

    Args:
        model: gives the weights.
        token_ids: [T].
        frequencies: RoPE's inverse ones, [d/2].
        positions: RoPE's, [T]; 0, 1, .. where none are given.
        query_scale: factor of the query at position i of a layer.
        window: a query sees so many positions, its own included; or a function of the layer.
    """
    model = copy.deepcopy(model).double()
    config, length = model.config, len(token_ids)
    positions = torch.arange(length) if positions is None else positions
    rotation = torch.exp(1j * positions.double()[:, None] * frequencies.double())  # [T, d/2]

    def normed(norm, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * norm.weight

    def rotated(x):  # [T, d]
        half = x.shape[-1] // 2
        z = torch.complex(x[:, :half], x[:, half:]) * rotation
        return torch.cat((z.real, z.imag), dim=-1)

    hidden = model.model.embed_tokens(token_ids)
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        d = attention.head_dim
        x = normed(layer.input_layernorm, hidden)
        q, k, v = (p(x).reshape(length, -1, d) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        if config.model_type.endswith("qwen3"):
            q, k = normed(attention.q_norm, q), normed(attention.k_norm, k)
        reach = window(index) if callable(window) else window
        output = torch.zeros_like(q)
        for head in range(config.num_attention_heads):
            shared = head // (config.num_attention_heads // config.num_key_value_heads)
            queries, keys = rotated(q[:, head]), rotated(k[:, shared])
            for i in range(length):
                start = max(0, i + 1 - reach) if reach else 0
                scores = keys[start : i + 1] @ queries[i] * query_scale(index, i) / d**0.5
                output[i, head] = scores.softmax(0) @ v[start : i + 1, shared]
        hidden = hidden + attention.o_proj(output.reshape(length, -1))
        hidden = hidden + layer.mlp(normed(layer.post_attention_layernorm, hidden))
    return model.lm_head(normed(model.model.norm, hidden))


def assert_close_logits(actual: Tensor, expected: Tensor, tolerance=2e-4):
    """Equal up to `tolerance` of the largest logit."""
    difference = (actual.double() - expected.double()).abs().max() / expected.abs().max()
    assert difference < tolerance, f"relative difference {difference:.2g}"
