"""Models whose numbers would not be what they are called are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longshort.errors import UserError
from longshort.lmeval.model_checks import require_decoder_only, require_rows
from longshort.testing import save_checkpoint
from tests.lmeval.conftest import run
from tests.models import tiny_model

SETTINGS: dict[str, Any] = {"lengths": [16, 32], "num_docs": 1}


def test_an_encoder_decoder_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="t5"))
    with pytest.raises(UserError, match="'t5' is no decoder-only model"):
        require_decoder_only(model, "seq2seq")
    require_decoder_only(tiny_model("gpt_neox"), "causal")


def test_an_encoder_on_disk_is_refused_in_a_run(tmp_path: Path, corpus: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert", model_type="bert")
    with pytest.raises(UserError, match="'bert' is an encoder here"):
        run(folder, ["longshort_perplexity"], SETTINGS | {"corpus": str(corpus)})


def test_tokens_without_an_embedding_are_refused(tmp_path: Path, corpus: Path) -> None:
    model, document = tiny_model("llama"), SimpleNamespace(tokens=torch.tensor([1, 60]))
    documents: list[Any] = [document, SimpleNamespace(tokens=torch.tensor([], dtype=torch.long))]
    require_rows(model, documents)
    document.tokens[0] = 61
    with pytest.raises(UserError, match="the tokenizer gives token 61, and the model has a vocabulary of 61"):
        require_rows(model, documents)
    folder = save_checkpoint(tmp_path / "small", vocab_size=61)
    with pytest.raises(UserError, match="they do not belong together"):
        run(folder, ["longshort_misalignment"], SETTINGS | {"corpus": str(corpus)})
