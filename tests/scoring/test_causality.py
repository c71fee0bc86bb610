"""Models that see later tokens are told from causal ones by what they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from longshort.errors import UserError
from longshort.scoring.causality import causal_length, require_causal
from longshort.testing import save_checkpoint
from tests.errors import user_error
from tests.models import CONFIGS, LLAMA_LIKE, TOKENS, tiny_model

SIZE = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GEMMA = LLAMA_LIKE | TOKENS | {"head_dim": 8}
CPMANT = {
    "vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48,
    "num_hidden_layers": 2, "position_bias_num_buckets": 16, "position_bias_max_distance": 32,
    "prompt_types": 8, "prompt_length": 2, "segment_types": 8,
}  # fmt: skip
MIXTRAL = transformers.MixtralConfig(**LLAMA_LIKE, **TOKENS, num_local_experts=4)
BAMBA = transformers.BambaConfig(
    **LLAMA_LIKE, **TOKENS, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=1,
    mamba_chunk_size=8,
)  # fmt: skip
ENCODERS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "xlnet": lambda: transformers.XLNetConfig(**SIZE, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "xlm": lambda: transformers.XLMConfig(vocab_size=61, emb_dim=32, n_layers=2, n_heads=4, pad_index=0),
    "cpmant": lambda: transformers.CpmAntConfig(**CPMANT),
    "gemma": lambda: transformers.GemmaConfig(**GEMMA, use_bidirectional_attention=True),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True),
    "llama": lambda: not_causal(transformers.LlamaConfig(**LLAMA_LIKE, **TOKENS)),
    "gpt2": lambda: not_causal(transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "mixtral": lambda: not_causal(transformers.MixtralConfig(**LLAMA_LIKE, **TOKENS, num_local_experts=4)),
}
DECODERS = CONFIGS | {
    "xlm": transformers.XLMConfig(vocab_size=61, emb_dim=32, n_layers=2, n_heads=4, pad_index=0, causal=True),
    "gemma": transformers.GemmaConfig(**GEMMA),
    "mixtral": MIXTRAL,
    "bamba": BAMBA,
    "few positions": transformers.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=5),
    "two tokens": transformers.LlamaConfig(**(LLAMA_LIKE | {"vocab_size": 4}), bos_token_id=0, eos_token_id=1),
    "one token": transformers.LlamaConfig(**(LLAMA_LIKE | {"vocab_size": 3}), bos_token_id=0, eos_token_id=1),
}


def not_causal(config: transformers.PretrainedConfig) -> transformers.PretrainedConfig:
    config.is_causal = False
    return config


def build(config: transformers.PretrainedConfig, dtype: torch.dtype, sharpness: float) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharpness if parameter.ndim > 1 else 1)
    return model


@torch.no_grad()
def leak(model: nn.Module, tokens: Tensor) -> float:
    """In double precision: how much the last token changes the logits before it, relative to its own."""
    model = model.double()
    changed = tokens.clone()
    changed[0, -1] = tokens[0, 0]
    difference = (model(tokens).logits - model(changed).logits).abs()[0]
    return float(difference[:-1].max() / difference[-1].max())


@pytest.mark.parametrize("sharpness", [1.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODERS)
def test_a_model_that_sees_later_tokens_is_refused(name: str, dtype: torch.dtype, sharpness: float) -> None:
    model = build(ENCODERS[name](), dtype, sharpness)
    with user_error("unsupported", f"'{name}'"):
        require_causal(model)
    if name != "mixtral":  # whose experts do not compute in double precision
        assert leak(model, torch.arange(3, 20)[None]) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DECODERS)
def test_causal_models_pass(name: str, dtype: torch.dtype) -> None:
    for sharpness in (1.0, 8.0):
        require_causal(build(DECODERS[name], dtype, sharpness))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_refused_and_the_same_as_a_decoder_passes(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert", model_type="bert")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=dtype).train()
    with pytest.raises(UserError, match="'bert'") as raised:
        require_causal(model)
    assert raised.value.kind == "unsupported"
    assert model.training
    first, second = (model.eval()(torch.tensor([[5, 6, 7, last]])).logits[0, 0] for last in (8, 9))
    assert (first - second).abs().max() > 0.01  # so its first position does see the last token
    require_causal(load(folder, dtype=dtype, is_decoder=True))


def test_a_model_is_probed_once_and_again_after_its_configuration_changed() -> None:
    model = tiny_model("llama")
    require_causal(model)
    calls: list[Any] = []
    model.model.register_forward_hook(lambda *args: calls.append(args))
    require_causal(model)
    assert not calls
    model.config.is_causal = False
    with user_error("unsupported", "'llama'"):
        require_causal(model)


class Noisy(nn.Module):
    """Logits of a causal model in half precision, with an error that changes with whatever else is in the batch."""

    def __init__(self, noise: float, future: float) -> None:
        super().__init__()
        self.config = transformers.LlamaConfig(vocab_size=61)
        self.embedding, self.noise, self.future = nn.Embedding(61, 61), noise, future

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, **_: object) -> Any:
        states = self.embedding(input_ids)  # [B, T, V]
        logits = states.cumsum(1) + self.future * states.sum(1, keepdim=True)
        generator = torch.Generator().manual_seed(int((input_ids.flatten() * torch.arange(input_ids.numel())).sum()))
        logits = logits * (1 + self.noise * torch.randn(logits.shape, generator=generator))
        return transformers.modeling_outputs.CausalLMOutput(logits=logits.bfloat16())


@pytest.mark.parametrize("noise", [0.0, 2e-2])
def test_rounding_that_depends_on_the_batch_is_not_the_future(noise: float) -> None:
    """Experts on a GPU: other numbers of tokens per expert, other kernels, other last bits."""
    torch.manual_seed(0)
    require_causal(Noisy(noise, future=0.0))
    with user_error("unsupported"):
        require_causal(Noisy(noise, future=0.5))


@pytest.mark.parametrize("codebooks", [1, 4])
def test_musicgen_is_read_with_one_codebook_and_refused_with_more(codebooks: int) -> None:
    config = transformers.MusicgenDecoderConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=48, num_codebooks=codebooks,
        pad_token_id=0, bos_token_id=0,
    )  # fmt: skip
    model = transformers.MusicgenForCausalLM(config).eval()
    if codebooks == 1:
        require_causal(model)
        return
    with user_error("unsupported", "'musicgen_decoder'"):
        require_causal(model)


def test_the_hashes_of_a_reformer_are_causal_within_a_chunk_only() -> None:
    config = transformers.ReformerConfig(
        vocab_size=61, is_decoder=True, max_position_embeddings=64, axial_pos_shape=(8, 8), hidden_size=32,
        axial_pos_embds_dim=(16, 16), attention_head_size=8, feed_forward_size=48, attn_layers=["local", "lsh"],
        num_attention_heads=4, local_attn_chunk_length=16, lsh_attn_chunk_length=16, num_buckets=4,
    )  # fmt: skip
    model = build(config, torch.float32, 5.0)
    require_causal(model)
    assert causal_length(model) == 16
    with torch.no_grad():
        for length, same in ((16, True), (48, False)):
            tokens = torch.arange(3, 3 + length)[None]
            first, second = model(tokens).logits, model(tokens).logits
            assert torch.equal(first, second) is same
    assert causal_length(tiny_model("llama")) is None
