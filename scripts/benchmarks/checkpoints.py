"""Random checkpoints and text on disk, for benchmarks of whole commands."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ARCHITECTURES = ("llama", "gpt2", "gpt_neox", "mistral")


def save_checkpoint(
    folder: Path, architecture: str, seed: int, *, hidden: int, layers: int, positions: int, vocabulary: int = 257
) -> Path:
    """Save a random model of four heads with a byte tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from longshort.training.byte_tokenizer import byte_tokenizer

    shape: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
    }
    if architecture == "gpt2":
        shape = {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": positions}
    if architecture == "mistral":
        shape |= {"num_key_value_heads": 4, "sliding_window": positions // 2}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture, vocab_size=vocabulary, bos_token_id=256, eos_token_id=256, pad_token_id=256, **shape
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def save_corpus(path: Path, num_docs: int, num_bytes: int) -> Path:
    """A JSONL file of documents of random letters."""
    letters = random.Random(0)
    documents = ("".join(letters.choices("abcdefghij ", k=num_bytes)) for _ in range(num_docs))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path
