"""Models whose numbers would have another meaning are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from longshort.lmeval.model_checks import require_decoder_only, require_embeddings
from longshort.testing import save_checkpoint
from tests.errors import user_error
from tests.lmeval.conftest import run
from tests.models import tiny_model

SETTINGS: dict[str, Any] = {"lengths": [16, 32], "num_docs": 1}


def test_an_encoder_decoder_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="t5"))
    with user_error("unsupported", "'t5'"):
        require_decoder_only(model, "seq2seq")
    require_decoder_only(tiny_model("gpt_neox"), "causal")


def test_an_encoder_on_disk_is_refused_in_a_run(tmp_path: Path, corpus: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert", model_type="bert")
    with user_error("unsupported", "'bert'"):
        run(folder, ["longshort_perplexity"], SETTINGS | {"corpus": str(corpus)})


def test_tokens_without_an_embedding_are_refused(tmp_path: Path, corpus: Path) -> None:
    model, document = tiny_model("llama"), SimpleNamespace(tokens=torch.tensor([1, 60]))
    documents: list[Any] = [document, SimpleNamespace(tokens=torch.tensor([], dtype=torch.long))]
    require_embeddings(model, documents)
    document.tokens[0] = 61
    with user_error("setting", "token 61", "of 61"):
        require_embeddings(model, documents)
    folder = save_checkpoint(tmp_path / "small", vocab_size=61)
    with user_error("setting", "of 61"):
        run(folder, ["longshort_misalignment"], SETTINGS | {"corpus": str(corpus)})
