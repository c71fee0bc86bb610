"""The official CLEX layer and ours, with the same weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from official.models import extended, tiny_llama
from official.source import Checkout

LAYER = "CLEX/clex_layer.py"
OFFICIAL_STEP = 0.01
MAX_T = 16
ORIGINAL = 32  # L0 of the tiny Llama


def official_layer(checkout: Checkout, ours: Any) -> Any:
    """The official CLEX layer with the weights and the settings of our rotary embedding."""
    names = checkout.definitions(LAYER)
    rope = ours.config.rope_parameters
    settings = {"max_factor": rope["max_t"], "param_factor": 1, "act": rope["activation"], "time_dt": OFFICIAL_STEP}
    layer = names["CLEXScalingRotaryEmbedding"](
        2 * len(ours.up), rope["original_max_position_embeddings"], settings, rope["rope_theta"]
    )
    layer.proj_func.load_state_dict({"ode_up_proj": ours.up, "ode_down_proj": ours.down})
    return layer


class _Torch64:
    """torch with float64 in the place of float32, for functions of a `Checkout`."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def solve_in_float64(layer: Any) -> None:
    """Let an official CLEX layer solve its ODE in float64, which its own functions cast to float32."""
    for method in (type(layer).get_continuous_freq, type(layer.proj_func).get_time_embedding):
        method.__globals__["torch"] = _Torch64()
    ode = layer.proj_func.double()
    for weight in ode.parameters():
        weight.float = lambda weight=weight: weight
    layer.inv_freq = layer.base ** -(torch.arange(0, layer.dim, 2, dtype=torch.float64) / layer.dim)


def our_layer(theta: float, activation: str, step: float) -> Any:
    """The rotary embedding of a CLEX model with heads of 128 dimensions, away from where training starts."""
    stock = tiny_llama(4096, theta=theta, hidden_size=128, num_attention_heads=1, num_key_value_heads=1)
    return _away_from_start(
        extended(stock, "clex", train_length=4096, options={"activation": activation, "step": step})
    )


def _away_from_start(model: Any) -> Any:
    rotary = model.model.rotary_emb
    nn.init.normal_(rotary.down, std=0.002, generator=torch.Generator().manual_seed(5))
    return rotary


def tiny_clex(step: float = OFFICIAL_STEP) -> Any:
    """Our tiny CLEX model."""
    model = extended(tiny_llama(ORIGINAL), "clex", train_length=ORIGINAL, options={"activation": "tanh", "step": step})
    _away_from_start(model)
    return model
