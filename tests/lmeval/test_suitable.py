"""Models whose numbers would not be what they are called are refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from longshort.errors import UserError
from longshort.lmeval.suitable import require_causal, require_rows
from tests.checkpoints import save_checkpoint
from tests.lmeval.conftest import run
from tests.models import CONFIGS, tiny_model

BERT: dict[str, Any] = {
    "vocab_size": 263,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def bert(**config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.BertConfig(**BERT, **config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.ndim == 2 else 1)  # contexts shall make a difference
    return model


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_causal_models_pass(name: str) -> None:
    require_causal(tiny_model(name), "causal")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_refused_and_the_same_as_a_decoder_passes(dtype: torch.dtype) -> None:
    model = bert().to(dtype)
    tokens = torch.tensor([[5, 6, 7, 8]])
    seen = model(tokens).logits[0, 0] - model(torch.tensor([[5, 6, 7, 9]])).logits[0, 0]
    assert seen.abs().max() > 0  # so the first position does see the last token
    with pytest.raises(UserError, match="'bert' is an encoder here"):
        require_causal(model, "causal")
    require_causal(bert(is_decoder=True).to(dtype), "causal")


def test_an_encoder_decoder_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="t5"))
    with pytest.raises(UserError, match="'t5' is no decoder-only model"):
        require_causal(model, "seq2seq")


def test_an_encoder_on_disk_is_refused_in_a_run(tmp_path: Path, corpus: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert")  # for its tokenizer
    bert().save_pretrained(folder)
    metadata = {"corpus": str(corpus), "lengths": [16, 32], "num_docs": 1}
    with pytest.raises(UserError, match="'bert' is an encoder here"):
        run(folder, ["longshort_perplexity"], metadata)


def test_tokens_without_an_embedding_are_refused(tmp_path: Path, corpus: Path) -> None:
    model = tiny_model("llama")
    document = SimpleNamespace(tokens=torch.tensor([1, 60]))
    require_rows(model, [document, SimpleNamespace(tokens=torch.tensor([], dtype=torch.long))])  # type: ignore[list-item]
    document.tokens[0] = 61
    with pytest.raises(UserError, match="the tokenizer gives token 61, and the model has a vocabulary of 61"):
        require_rows(model, [document])  # type: ignore[list-item]
    metadata = {"corpus": str(corpus), "lengths": [16, 32], "num_docs": 1}
    with pytest.raises(UserError, match="they do not belong together"):
        run(save_checkpoint(tmp_path / "small", vocab_size=61), ["longshort_misalignment"], metadata)
