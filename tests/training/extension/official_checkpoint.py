"""A tiny checkpoint in the layout of the official CLEX code: its config, and its names of the weights."""

import json

import torch
from huggingface_hub import save_torch_state_dict

from longshort.testing import tiny_tokenizer

MAX_T = 4
UP, DOWN, INVERSE = (
    f"model.clex_layer.{name}" for name in ("proj_func.ode_up_proj", "proj_func.ode_down_proj", "inv_freq")
)
SCALING = {"type": "clex", "factor": 1, "max_factor": MAX_T, "param_factor": 1, "act": "tanh", "time_dt": 0.01}


def save_official(
    folder,
    model,
    tokenizer=None,
    *,
    rounded=False,
    scaling=SCALING,
    weights=None,
    safe=True,
    shard_size="1GB",
    **fields,
):
    """Save a Llama as the official code does: transformers 4.36's config, and the weights of its CLEX layer."""
    theta, config = model.config.rope_parameters["rope_theta"], model.config
    dim = config.hidden_size // config.num_attention_heads
    half, hidden = dim // 2, scaling.get("param_factor", 1) * dim
    generator = torch.Generator().manual_seed(1)
    dtype = torch.bfloat16 if rounded else torch.float32
    state = dict(model.state_dict()) | {
        UP: torch.randn(half, hidden, generator=generator) / 2,
        DOWN: torch.randn(hidden, half, generator=generator) / 32,
        INVERSE: (1 / theta ** (torch.arange(0, dim, 2).float() / dim)).to(dtype),
    }
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    state = {name: value for name, value in (state | (weights or {})).items() if value is not None}
    pattern = "model{suffix}.safetensors" if safe else "pytorch_model{suffix}.bin"
    folder.mkdir()
    save_torch_state_dict(state, folder, filename_pattern=pattern, max_shard_size=shard_size, safe_serialization=safe)
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps", "bos_token_id",
        "eos_token_id", "pad_token_id",
    )  # fmt: skip
    written = {name: getattr(config, name) for name in names} | {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_clex.CLEXLlamaConfig",
            "AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM",
        },
        "model_type": "llama",
        "rope_theta": theta,
        "rope_scaling": scaling,
        "log_scale": False,
        "use_flashattn": True,
        "pretraining_tp": 1,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "transformers_version": "4.36.2",
    }
    written = {name: value for name, value in (written | fields).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "modeling_llama.py").write_text("raise SystemExit('the code of a checkpoint must not run')")
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return {name: value.double() for name, value in state.items()}
