"""Tiny checkpoints on disk, with a byte-level tokenizer, as a user would have them in a folder."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = ["<pad>", "<s>", "</s>"]


def tiny_tokenizer(bos: bool = False) -> transformers.PreTrainedTokenizerFast:
    """256 byte tokens and a few merges; with `bos`, <s> stands before every text by default."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a")]
    vocabulary = SPECIAL + alphabet + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def save_checkpoint(
    folder: Path, bos: bool = False, model_type: str = "llama", seed: int = 0, **config: object
) -> Path:
    """Save a random model and its tokenizer; `config` overrides the model's configuration."""
    tokenizer = tiny_tokenizer(bos)
    shapes: dict[str, dict[str, object]] = {
        "llama": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    }
    shapes["bert"] = shapes["llama"]
    settings = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    settings |= shapes.get(model_type, {}) | config
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim == 2 else 1)  # contexts shall make a difference
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_corpus(path: Path, num_docs: int = 5, num_bytes: int = 2000) -> Path:
    """A JSONL corpus of documents whose lengths differ, with characters of several bytes."""
    import json

    words = ["the", "thin", "père", "日本", "and", "in", "a", "🙂", "theorem", "x²"]
    with path.open("w") as file:
        for document in range(num_docs):
            text = " ".join(words[(i * i + document) % len(words)] for i in range(num_bytes // 5 + 40 * document))
            file.write(json.dumps({"text": text}) + "\n")
    return path
