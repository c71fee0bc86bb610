"""Every architecture of transformers' causal mapping as a tiny random model, built from its default configuration."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 96
POSITIONS = 64
LAYERS = 3
MAX_PARAMETERS = 5_000_000
SHARPNESS = 4.0

# Sizes by the names that configurations give them. A name that a configuration lacks is not set.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ["vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "audio_vocab_size", "unpadded_vocab_size",
         "pronunciation_vocab_size", "shape_vocab_size", "ngram_vocab_size_base", "encoder_hash_byte_group_vocab"],
        VOCABULARY,
    ),
    **dict.fromkeys(
        ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions",
         "max_source_positions", "model_max_length", "context_length", "original_max_position_embeddings"],
        POSITIONS,
    ),
    **dict.fromkeys(
        ["hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim", "embedding_dim",
         "hidden_size_global", "attention_hidden_size", "lru_width", "input_size", "backbone_hidden_size",
         "input_embedding_size", "output_embedding_size", "pronunciation_embed_dim", "shape_embed_dim",
         "out_hidden_size"],
        64,
    ),
    **dict.fromkeys(
        ["intermediate_size", "ffn_dim", "dff", "dim_ff", "d_inner", "decoder_ffn_dim", "encoder_ffn_dim",
         "ffn_hidden_size", "feed_forward_size", "d_ff", "moe_intermediate_size", "shared_expert_intermediate_size",
         "shared_experts_intermediate_size", "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size",
         "intermediate_size_mlp", "shared_intermediate_size", "dense_intermediate_size", "prompt_mid_dim",
         "mlp_dim"],
        64,
    ),
    **dict.fromkeys(
        ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers",
         "num_blocks"],
        LAYERS,
    ),
    **dict.fromkeys(["encoder_layers", "num_encoder_layers", "depth", "num_global_layers"], 1),
    **dict.fromkeys(
        ["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads",
         "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
         "swa_num_attention_heads", "linear_num_value_heads", "linear_num_heads", "index_n_heads"],
        4,
    ),
    **dict.fromkeys(
        ["num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"], 2
    ),
    **dict.fromkeys(
        ["head_dim", "d_head", "dim_head", "d_kv", "v_head_dim", "kv_channels", "attention_head_size", "swa_head_dim",
         "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "attention_head_dim", "index_head_dim",
         "kv_lora_rank", "q_lora_rank", "o_lora_rank", "hidden_size_per_layer_input", "laurel_rank", "adapter_rank",
         "router_hidden_size", "qk_nope_head_dim", "global_head_dim"],
        16,
    ),
    **dict.fromkeys(["qk_rope_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["state_size", "mamba_d_state", "ssm_state_size", "time_step_rank", "mamba_dt_rank"], 8),
    **dict.fromkeys(
        ["num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"], 4
    ),
    **dict.fromkeys(
        ["num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_k"], 2
    ),
    **dict.fromkeys(["index_topk", "compress_ratio"], 8),
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group", "mamba_n_groups", "n_groups"], 1),
    **dict.fromkeys(
        ["sliding_window", "sliding_window_size", "window_size", "local_attention", "attention_window_size",
         "attention_chunk_size", "keep_window_size", "chunk_size", "mamba_chunk_size", "local_attention_window_len"],
        16,
    ),
}  # fmt: skip

# What the rule above cannot know: values that must fit each other.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MAMBA_ATTENTION = {"attention_hidden_size": 128, "attention_head_dim": 32}
GEMMA_LAYERS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
SPECIAL: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "rope_parameters": {
            kind: ROPE | {"mrope_section": [4, 2, 2]} for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 24, "per_layer_config": {}},
    "dots3_note_vision_encoder": {"adapter_in_dim": 64, "adapter_out_dim": 64, "mlp_layer_types": ["dense"] * LAYERS},
    "dots3_note_audio_encoder": {"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 16},
    "gemma3n_text": {"num_hidden_layers": 4, "layer_types": GEMMA_LAYERS, "num_kv_shared_layers": 2,
                     "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0], "intermediate_size": [64] * 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 16},
    "longcat_flash": {"head_dim": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "phi4_multimodal_audio": {"ext_pw_out_channel": 64, "depthwise_separable_out_channel": 64,
                              "nemo_conv_channels": 16},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
                       "indexer_compress_ratio": 4, "hc_lowrank": 16},
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (32, 32),
                 "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "attn_layers": ["local", "lsh"],
                 "num_hidden_layers": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": MAMBA_ATTENTION,
    "zamba2": MAMBA_ATTENTION,
}  # fmt: skip

# Parts of a composite configuration whose own defaults are not valid.
PARTS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "gemma4_assistant": {
        "text_config": ("gemma4_text", {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0})
    },
}

# The causal LM is built from this part of the configuration; AutoModelForCausalLM does not find it by itself.
PART_OF_A_COMPOSITE = {"musicgen": "decoder", "musicgen_melody": "decoder"}

LAYER_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types")


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The default configuration with small sizes, and changes to it."""
    given = {name: CONFIG_MAPPING[part](**values) for name, (part, values) in PARTS.get(model_type, {}).items()}
    default = CONFIG_MAPPING[model_type](**given)
    if model_type in PART_OF_A_COMPOSITE:
        default = getattr(default, PART_OF_A_COMPOSITE[model_type])
    config = type(default)(**{**_small(default), **changes})
    for name, value in changes.items():  # also those that the constructor does not take
        setattr(config, name, value)
    return config


def _small(default: PretrainedConfig) -> dict[str, Any]:
    """Arguments that make a small configuration of the same class."""
    given = dict(vars(default))
    if "qk_rope_head_dim" in given:
        given.pop("head_dim", None)  # the former, or computed from it
    if "kv_lora_rank" in given:
        given.pop("num_key_value_heads", None)  # all heads have keys of their own
    small: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, PretrainedConfig):
            small[name] = type(value)(**_small(value))
        elif name in LAYER_KINDS and isinstance(value, list):
            small[name] = some_of_each(value)
        elif name in SIZES and type(value) is int:
            small[name] = min(value, SIZES[name])
        elif name in ("head_dim", "num_key_value_heads") and value is None:
            small[name] = SIZES[name]
        elif name.endswith("token_id") and type(value) is int:
            small[name] = min(value, 3)
    return small | SPECIAL.get(default.model_type, {})


def some_of_each(kinds: list[str]) -> list[str]:
    """As many kinds of layers as the model has layers, each at least once if possible, in their order."""
    distinct = list(dict.fromkeys(kinds))[:LAYERS]
    return distinct + [distinct[-1]] * (LAYERS - len(distinct))


def tiny_model(model_type: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model in evaluation mode; larger weights than usual, so that contexts make a difference.

    Raises:
        ValueError: it is not tiny.
    """
    config = tiny_config(model_type, **changes)
    build: Any = transformers.AutoModelForCausalLM.from_config
    if model_type in PART_OF_A_COMPOSITE:
        build = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])._from_config
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build(config).parameters())
    if size > MAX_PARAMETERS:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(seed)
    # Experts one by one in double precision, which the grouped products lack.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    model: nn.Module = build(config, dtype=dtype, **experts)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SHARPNESS)
    return model.eval()
