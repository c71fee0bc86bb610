"""Tiny checkpoints and corpora on disk, for tests, benchmarks and studies."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]
ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "mistral")
SHARPNESS = 6.0  # larger weights than usual, so that the context changes the predictions


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of 256 bytes and a few merges; with `bos`, it prepends <s> to every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a")]
    vocabulary = SPECIAL + alphabet + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def save_checkpoint(
    folder: Path,
    bos: bool = False,
    model_type: str = "llama",
    seed: int = 0,
    sharpness: float = SHARPNESS,
    **config: object,
) -> Path:
    """Save a random causal LM and the tokenizer of `tiny_tokenizer`.

    Args:
        bos: whether the tokenizer prepends <s>.
        model_type: as in a transformers config; only llama, gpt2 and bert have a shape of their own here.
        sharpness: factor of all matrices.
        config: overrides the model's configuration.
    """
    tokenizer = tiny_tokenizer(bos)
    shape = _shape(model_type, 32, 48, 2, 64) if model_type in ("llama", "gpt2", "bert") else {}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    _save_model(folder, model_type, seed, sharpness, {"vocab_size": len(tokenizer)} | special | shape | config)
    tokenizer.save_pretrained(folder)
    return folder


def save_sized_checkpoint(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    model_type: str,
    seed: int,
    *,
    hidden: int,
    layers: int,
    positions: int,
    vocabulary: int = 257,
) -> Path:
    """Save a random causal LM of a given size, with weights as transformers initializes them.

    Args:
        tokenizer: saved with the model; its special tokens are the model's.
        model_type: one of `ARCHITECTURES`.
        hidden, layers: sizes of the model; it has four heads.
        positions: maximum number of tokens.
    """
    special = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}
    shape = _shape(model_type, hidden, hidden * 8 // 3, layers, positions)
    if model_type == "mistral":
        shape |= {"num_key_value_heads": 4, "sliding_window": positions // 2}
    _save_model(folder, model_type, seed, 1.0, {"vocab_size": vocabulary} | special | shape)
    tokenizer.save_pretrained(folder)
    return folder


def save_corpus(path: Path, num_docs: int = 5, num_bytes: int = 2000) -> Path:
    """Save a JSONL corpus of documents of different lengths, with characters of several bytes."""
    words = ["the", "thin", "père", "日本", "and", "in", "a", "🙂", "theorem", "x²"]
    texts = (
        " ".join(words[(i * i + document) % len(words)] for i in range(num_bytes // 5 + 40 * document))
        for document in range(num_docs)
    )
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def save_letters(path: Path, num_docs: int, num_bytes: int) -> Path:
    """Save a JSONL corpus of documents of random letters, all of the same length."""
    letters = random.Random(0)
    texts = ("".join(letters.choices("abcdefghij ", k=num_bytes)) for _ in range(num_docs))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def _shape(model_type: str, hidden: int, intermediate: int, layers: int, positions: int) -> dict[str, object]:
    if model_type == "gpt2":
        return {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": positions}
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
    }


def _save_model(folder: Path, model_type: str, seed: int, sharpness: float, settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and sharpness != 1:
                parameter.mul_(sharpness)
    model.save_pretrained(folder)
