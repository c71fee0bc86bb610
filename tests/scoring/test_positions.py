"""How far each architecture can address, and which ones change with the sequence length."""

from __future__ import annotations

import pytest
import torch
import transformers

from longshort.scoring import score_prefix
from longshort.scoring.positions import addressable_length, depends_on_length
from tests.models import CONFIGS, LLAMA_LIKE, TOKENS, random_tokens, tiny_model

LIMITS = {"gpt2": 64, "gptj": 64, "opt": 64}


@pytest.mark.parametrize("name", CONFIGS)
def test_addressable_length_is_where_the_model_breaks(name: str) -> None:
    model = tiny_model(name)
    limit = addressable_length(model)
    assert limit == LIMITS.get(name)
    model(random_tokens(1, limit or 300))
    if limit:
        with pytest.raises((IndexError, RuntimeError)):
            model(random_tokens(1, limit + 1))


def test_a_table_that_is_gathered_by_keywords_has_its_end_too() -> None:
    """BERT as a decoder: `torch.gather(table, dim=1, index=positions)`."""
    config = transformers.BertConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, is_decoder=True,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert addressable_length(model) == 64


def rope_model(original: int, **rope: object) -> torch.nn.Module:
    torch.manual_seed(0)
    parameters = {"rope_theta": 10000.0} | rope
    config = transformers.LlamaConfig(
        **(LLAMA_LIKE | {"max_position_embeddings": original}), **TOKENS, rope_parameters=parameters
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return model


LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default"}, False),
        ({"rope_type": "linear", "factor": 4.0}, False),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, False),
        ({"rope_type": "dynamic", "factor": 2.0}, True),
        ({"rope_type": "longrope", **LONGROPE}, True),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_dependence_on_length_by_config_and_by_probe(
    rope: dict[str, object], expected: bool, declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not declared:  # as with remote code: only the probe can tell
        monkeypatch.setattr("longshort.scoring.positions._declares_dependence", lambda *args: False)
    model, tokens = rope_model(32, **rope), random_tokens(1, 96)
    assert depends_on_length(model, tokens, [24, 64, 96], score_prefix(model, tokens)) is expected


def test_dynamic_rope_within_its_original_length_needs_one_pass() -> None:
    model, tokens = rope_model(32, rope_type="dynamic", factor=2.0), random_tokens(1, 30)
    assert not depends_on_length(model, tokens, [12, 30], score_prefix(model, tokens))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_other_architecture_depends_on_length(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(1, 60)
    assert not depends_on_length(model, tokens, [20, 60], score_prefix(model, tokens))
