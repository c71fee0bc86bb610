"""Tiny random causal LMs of many architectures, and a dense, slow, obvious way to score with them."""

from __future__ import annotations

import copy

import torch
import transformers
from torch import Tensor, nn

VOCAB = 61
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

CONFIGS = {
    "llama": transformers.LlamaConfig(**LLAMA_LIKE, **TOKENS),
    "mistral": transformers.MistralConfig(**LLAMA_LIKE, **TOKENS, sliding_window=7),
    "qwen3": transformers.Qwen3Config(**LLAMA_LIKE, **TOKENS, head_dim=8),
    "gemma2": transformers.Gemma2Config(
        **LLAMA_LIKE,
        **TOKENS,
        head_dim=8,
        sliding_window=8,
        final_logit_softcapping=0.5,
        attn_logit_softcapping=1.0,
        query_pre_attn_scalar=8,
    ),
    "cohere": transformers.CohereConfig(**LLAMA_LIKE, **TOKENS, logit_scale=0.25),
    "granite": transformers.GraniteConfig(**LLAMA_LIKE, **TOKENS, logits_scaling=4.0),
    "gpt2": transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    ),
    "gpt_neox": transformers.GPTNeoXConfig(
        **SMALL, intermediate_size=48, max_position_embeddings=256, bos_token_id=1, eos_token_id=2
    ),
    "gptj": transformers.GPTJConfig(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=2,
        n_head=4,
        rotary_dim=4,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "opt": transformers.OPTConfig(
        **SMALL, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.0, **TOKENS
    ),
    "mamba": transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=1, eos_token_id=2
    ),
    "bloom": transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
}


def tiny_model(name: str, seed: int = 0, sharpness: float = 8.0) -> nn.Module:
    """A random model in evaluation mode; larger weights than usual, so that contexts make a difference."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(sharpness)
    return model


def random_tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids without the special ones, [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)


@torch.no_grad()
def dense_log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """The model's own logits at every position, as float64 log-probabilities, [B, T, V]."""
    return model(tokens).logits.double().log_softmax(-1)


class PackedTensor(Tensor):
    """As a quantized or distributed weight: only its own linear layer knows what is in it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in (torch.mm, torch.addmm, torch.matmul, Tensor.__getitem__):
            raise NotImplementedError(func)
        result = super().__torch_function__(func, types, args, kwargs)
        return result.as_subclass(Tensor) if func in (nn.functional.linear, Tensor.to) else result
