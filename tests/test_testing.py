"""The checkpoints and corpora that tests, benchmarks and studies share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from longshort.corpora import open_corpus
from longshort.testing import (
    ARCHITECTURES,
    save_checkpoint,
    save_corpus,
    save_letters,
    save_sized_checkpoint,
    tiny_tokenizer,
)
from longshort.training.byte_tokenizer import byte_tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_a_tokenizer_keeps_the_text(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos)
    ids = tokenizer("père 日本 the 🙂")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == bos
    assert tokenizer.decode(ids, skip_special_tokens=True) == "père 日本 the 🙂"


def test_the_same_seed_gives_the_same_model_and_the_context_matters(tmp_path: Path) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    one, same, other = (
        load(save_checkpoint(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    tokens, changed = torch.arange(5, 25)[None], torch.arange(5, 25)[None].clone()
    changed[0, 0] = 100
    logits = one(tokens).logits
    assert torch.equal(logits, same(tokens).logits)
    assert not torch.equal(logits, other(tokens).logits)
    assert (logits[0, -1].softmax(-1) - one(changed).logits[0, -1].softmax(-1)).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_checkpoints_of_a_given_size(architecture: str, tmp_path: Path) -> None:
    folder = save_sized_checkpoint(
        tmp_path / "model", byte_tokenizer(), architecture, 0, hidden=16, layers=3, positions=32, vocabulary=300
    )
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (16, 3, 32)
    assert (config.vocab_size, config.eos_token_id) == (300, 256)
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == 257


def test_corpora(tmp_path: Path) -> None:
    texts = [document.text for document in open_corpus(str(save_corpus(tmp_path / "a.jsonl", 3, 400)))]
    assert len(set(map(len, texts))) == 3
    rows = [json.loads(line) for line in save_letters(tmp_path / "b.jsonl", 2, 50).read_text().splitlines()]
    assert [len(row["text"].encode()) for row in rows] == [50, 50]
    assert rows[0] != rows[1]
