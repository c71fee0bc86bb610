"""The size of a checkpoint, from its config.json or, where that is not available, from its number of parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.results import read_json
from longshort.scoring.rope import DYNAMIC_ROPE_TYPES
from longshort.settings import Checkpoint

# Names of the same setting in the configs of different models.
HIDDEN = ("hidden_size", "n_embd", "d_model", "dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
INTERMEDIATE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")
VOCABULARY = ("vocab_size", "padded_vocab_size")
HEADS = ("num_attention_heads", "n_head", "n_heads")
KEY_HEADS = ("num_key_value_heads", "multi_query_group_num")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
WINDOW = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length")
GATED_MLP = ("silu", "swish", "swiglu")  # MLPs with these activations have three matrices, others two
TIED = ("gpt2", "gpt_neo", "opt", "bloom", "mpt", "falcon", "gpt_bigcode", "gemma", "gemma2")  # by default
LEARNED_POSITIONS = ("gpt2", "gpt_neo", "gptj", "codegen", "opt", "gpt_bigcode")  # tables of limited length
ROTARY = ("rope", "rotary", "partial_rotary")  # what keys of rotary position embeddings begin with
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # per parameter
USUAL_BYTES = 2

WIDTH_PER_LAYER = 128  # the usual form: hidden = 128 · layers, parameters = 12 · layers · hidden²
USUAL_PARAMETERS = 7 * 10**9  # assumed if nothing is known about a checkpoint
USUAL_VOCABULARY = 64_000  # between Llama 2's 32,000 and Llama 3's 128,256
MOST = 10**15  # a greater number means that the config is damaged


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer."""

    parameters: int  # all of them, embeddings included
    layers: int
    hidden: int
    intermediate: int  # of a mixture of experts, the width of all experts that process one token
    vocabulary: int
    known: bool  # False where they are guessed
    backbone: int  # parameters that every token is multiplied with, without embeddings and LM head


def shape_of(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Shape:
    """Return the shape in its config, from `read_config`, or else the usual shape for its number of parameters."""
    hidden, layers = whole(config, HIDDEN), whole(config, LAYERS)
    if not hidden or not layers:
        return _usual(checkpoint)
    vocabulary = whole(config, VOCABULARY) or USUAL_VOCABULARY
    heads = whole(config, HEADS) or 1
    head_width = whole(config, ("head_dim",)) or max(1, hidden // heads)
    key_heads = 1 if config.get("multi_query") is True else whole(config, KEY_HEADS) or heads
    attention = 2 * hidden * head_width * (heads + key_heads)

    width = whole(config, INTERMEDIATE) or 4 * hidden
    experts, used = whole(config, EXPERTS) or 1, 1
    if experts > 1:
        width = whole(config, ("moe_intermediate_size",)) or width
        used = min(experts, whole(config, ("num_experts_per_tok", "num_experts_per_token", "moe_topk")) or 2)
    kind = str(config.get("model_type", ""))
    activation = str(config.get("hidden_act") or config.get("activation_function") or "")
    matrices = 3 if activation in GATED_MLP or kind.startswith("gemma") else 2

    tied = config.get("tie_word_embeddings", kind in TIED) is True
    embeddings = vocabulary * hidden * (1 if tied else 2)
    backbone = layers * (attention + matrices * hidden * width * used)
    stored = layers * (attention + matrices * hidden * width * experts) + embeddings
    if experts == 1 and checkpoint.params and checkpoint.params > embeddings:
        backbone = checkpoint.params - embeddings
    return Shape(checkpoint.params or stored, layers, hidden, width * used, vocabulary, True, backbone)


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return its config.json, with the text model's settings where nested; empty if missing or damaged.

    Never downloads.
    """
    path = Path(checkpoint.pretrained) / "config.json" if checkpoint.is_local else _cached(checkpoint)
    if path is None:
        return {}
    try:
        config = read_json(path)
    except UserError:
        return {}
    text = config.get("text_config")
    return config | text if isinstance(text, dict) else config


def whole(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    """Return the first of these entries that is a plausible size."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MOST:
            return value
    return None


def longest_addressable(checkpoint: Checkpoint, config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens beyond which lengths are skipped, or None if there is no limit."""
    learned = whole(config, WINDOW) if config.get("model_type") in LEARNED_POSITIONS else None
    given = whole(checkpoint.model_args, ("max_length",))
    return min((limit for limit in (learned, given) if limit), default=None)


def bytes_per_number(checkpoint: Checkpoint, config: Mapping[str, Any]) -> int:
    """Return the bytes of one activation; "auto" is the dtype in the config."""
    own = str(config.get("dtype") or config.get("torch_dtype") or "")
    dtype = own if checkpoint.dtype == "auto" else checkpoint.dtype
    return BYTES.get(dtype.removeprefix("torch."), USUAL_BYTES)


def has_rotary_positions(config: Mapping[str, Any]) -> bool:
    """Return whether a config names rotary position embeddings; assumed if no config is available."""
    return not config or any(name.startswith(ROTARY) for name in config)


def is_read_per_length(config: Mapping[str, Any], longest: int) -> bool:
    """Return whether positions depend on the length, so that every prefix needs a forward pass of its own."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        return False
    kinds = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    original = ("original_max_position_embeddings",)
    return any(
        (kind.get("rope_type") or kind.get("type")) in DYNAMIC_ROPE_TYPES
        and longest > (whole(kind, original) or whole(config, (*original, "max_position_embeddings")) or 0)
        for kind in kinds
    )


def _usual(checkpoint: Checkpoint) -> Shape:
    parameters = checkpoint.params or named_parameters(checkpoint) or USUAL_PARAMETERS
    layers = max(1, round((parameters / (12 * WIDTH_PER_LAYER**2)) ** (1 / 3)))
    hidden = max(1, round((parameters / (12 * layers)) ** 0.5))
    return Shape(parameters, layers, hidden, 4 * hidden, USUAL_VOCABULARY, False, parameters)


def named_parameters(checkpoint: Checkpoint) -> int | None:
    """Return the number of parameters in its name, as in `-7b` or `-410m`."""
    match = re.search(r"(?:^|[-_])(\d+(?:\.\d+)?)([bm])(?=$|[-_])", checkpoint.pretrained.split("/")[-1].lower())
    return int(float(match[1]) * {"b": 1e9, "m": 1e6}[match[2]]) or None if match else None


def _cached(checkpoint: Checkpoint) -> Path | None:
    """The config in the hub's cache; another revision's serves as well, since a model keeps its shape."""
    from huggingface_hub import try_to_load_from_cache

    for revision in (checkpoint.revision, "main"):
        try:
            path = try_to_load_from_cache(checkpoint.pretrained, "config.json", revision=revision)
        except (OSError, ValueError):  # also an invalid hub name
            return None
        if isinstance(path, str):
            return Path(path)
    return None
