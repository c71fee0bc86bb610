"""What a transformers config says about its rotary position embedding."""

from __future__ import annotations

from typing import Any

# RoPE types whose frequencies depend on the sequence length once it exceeds the original context length.
DYNAMIC_ROPE_TYPES = ("dynamic", "longrope", "clex")


def rope_parameters(config: Any) -> list[dict[str, Any]]:
    """Return the RoPE parameters of a model, one set per kind of layer; empty if it has no RoPE."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [value for value in rope.values() if isinstance(value, dict)]
    return by_layer_type or ([rope] if rope else [])
