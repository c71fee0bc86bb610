"""Rescaled RoPE, which is transformers' own, compared with a second source: the authors' code of each method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from longshort.training.extension import extend_context
from official.source import Checkout
from official.table import Comparison, Difference, of_tensors

DIM, ORIGINAL, FACTOR = 128, 4096, 4  # Llama 2's head and length
THETA = 10_000.0
LENGTHS = (ORIGINAL // 2, ORIGINAL, 6000, ORIGINAL * FACTOR)

SEARCH = (
    "The factors are given to both: the official search for them is not part of longshort, which uses NTK-aware "
    "factors by default. Within L0 ours uses `short_factor`, which is not compared here."
)
FIXED = (
    "Factor 8, L0 8,192 and low and high frequency factors 1 and 4 are fixed in the official function; ours takes L0 "
    "from the base."
)


def comparisons() -> list[Comparison]:
    """One row per method."""
    folder = "scaled_rope/"
    what = f"cos and sin of all positions, head of {DIM}, L0 {ORIGINAL:,}, factor {FACTOR}"
    return [
        Comparison(method, "cos and sin", f"{what}, {lengths}", name, file, measure, why)
        for method, lengths, name, file, measure, why in (
            ("linear", "16,384 tokens", "yarn", folder + "LlamaLinearScaledRotaryEmbedding.py", _linear, ""),
            (
                "dynamic",
                "2,048 to 16,384 tokens",
                "yarn",
                folder + "LlamaDynamicScaledRotaryEmbedding.py",
                _dynamic,
                "",
            ),
            ("yarn", "16,384 tokens", "yarn", folder + "LlamaYaRNScaledRotaryEmbedding.py", _yarn, ""),
            ("longrope", "16,384 tokens, random factors", "longrope", "rope/longrope.py", _longrope, SEARCH),
        )
    ] + [
        Comparison(
            "llama3",
            "inverse frequencies",
            f"head of {DIM}, θ 500,000, L0 8,192, factor 8",
            "llama-models",
            "models/llama3/model.py",
            _llama3,
            FIXED,
        )
    ]


def _config(original: int = ORIGINAL, theta: float = THETA) -> LlamaConfig:
    rope = {"rope_type": "default", "rope_theta": theta}
    return LlamaConfig(hidden_size=DIM, num_attention_heads=1, max_position_embeddings=original, rope_parameters=rope)


def _ours(length: int, extension: Any, options: dict[str, Any] | None = None) -> tuple[Tensor, Tensor]:
    """Cos and sin of positions 0 .. length - 1 in the model that `longshort train` builds, [length, d] each."""
    config, _ = extend_context(_config(), extension, train_length=ORIGINAL * FACTOR, factor=FACTOR, options=options)
    cos, sin = LlamaRotaryEmbedding(config)(torch.empty(1), torch.arange(length)[None])
    return cos[0], sin[0]


def _compared(official: tuple[Tensor, Tensor], ours: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(expected.reshape(actual.shape), actual) for expected, actual in zip(official, ours, strict=True)]


def _linear(checkout: Checkout) -> Difference:
    names = checkout.definitions("scaled_rope/LlamaLinearScaledRotaryEmbedding.py")
    rotary = names["LlamaLinearScaledRotaryEmbedding"](DIM, ORIGINAL, base=THETA, scale=FACTOR)
    length = ORIGINAL * FACTOR
    return of_tensors(_compared(rotary(torch.empty(1), length), _ours(length, "linear")))


def _dynamic(checkout: Checkout) -> Difference:
    names = checkout.definitions("scaled_rope/LlamaDynamicScaledRotaryEmbedding.py")
    pairs = []
    for length in LENGTHS:
        rotary = names["LlamaDynamicScaledRotaryEmbedding"](DIM, ORIGINAL, base=THETA, ntk=FACTOR)
        pairs += _compared(rotary(torch.empty(1), length), _ours(length, "dynamic"))
    return of_tensors(pairs)


def _yarn(checkout: Checkout) -> Difference:
    names = checkout.definitions("scaled_rope/LlamaYaRNScaledRotaryEmbedding.py")
    length = ORIGINAL * FACTOR
    rotary = names["LlamaYaRNScaledRotaryEmbedding"](
        DIM, length, base=THETA, scale=FACTOR, original_max_position_embeddings=ORIGINAL
    )
    return of_tensors(_compared(rotary(torch.empty(1), length), _ours(length, "yarn")))


def _longrope(checkout: Checkout) -> Difference:
    factors = (1 + 7 * torch.rand(DIM // 2, generator=torch.Generator().manual_seed(0))).tolist()
    names, length = checkout.definitions("rope/longrope.py"), ORIGINAL * FACTOR
    rotary = names["LongRoPEScaledRotaryEmbedding"](
        DIM, factors, max_position_embeddings=length, original_max_position_embeddings=ORIGINAL, base=THETA
    )
    official = rotary(torch.empty(1), torch.arange(length)[None], length)
    return of_tensors(_compared(official, _ours(length, "longrope", {"long_factor": factors})))


def _llama3(checkout: Checkout) -> Difference:
    names = checkout.definitions("models/llama3/model.py")
    config, _ = extend_context(_config(8192, 500_000.0), "llama3", train_length=8192, factor=8.0)
    plain = 1.0 / 500_000.0 ** (torch.arange(0, DIM, 2).float() / DIM)
    return of_tensors([(names["apply_scaling"](plain), LlamaRotaryEmbedding(config).inv_freq)])
