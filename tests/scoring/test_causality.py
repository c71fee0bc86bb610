"""Encoders are told from decoders by what they do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from longshort.errors import UserError
from longshort.scoring.causality import require_causal
from longshort.testing import save_checkpoint
from tests.models import CONFIGS, tiny_model


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_causal_models_pass(name: str) -> None:
    require_causal(tiny_model(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_refused_and_the_same_as_a_decoder_passes(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert", model_type="bert")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(folder, dtype=dtype).train()
    with pytest.raises(UserError, match="'bert' is an encoder here"):
        require_causal(model)
    assert model.training
    first, second = (model.eval()(torch.tensor([[5, 6, 7, last]])).logits[0, 0] for last in (8, 9))
    assert (first - second).abs().max() > 0.01  # so its first position does see the last token
    require_causal(load(folder, dtype=dtype, is_decoder=True))
