"""The patches are still needed, and do what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from longshort.testing import save_checkpoint
from longshort.training.compat import no_loading_report, no_packed_sequences


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    """A checkpoint without the weights of its second layer."""
    save_checkpoint(tmp_path / "whole")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    weights = {name: value for name, value in model.state_dict().items() if "layers.1." not in name}
    model.save_pretrained(tmp_path / "lacking", state_dict=weights)
    return tmp_path / "lacking"


def test_transformers_logs_a_report_of_missing_weights(lacking: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()
    try:
        transformers.AutoModelForCausalLM.from_pretrained(lacking)
        assert "layers.1" in caplog.text  # else the patch is no longer needed
        caplog.clear()
        with no_loading_report():
            transformers.AutoModelForCausalLM.from_pretrained(lacking)
        assert caplog.text == ""
        assert logging.get_verbosity() == logging.WARNING
    finally:
        logging.set_verbosity(verbosity)
        logger.removeHandler(caplog.handler)


def test_transformers_does_not_know_the_rope_type_of_clex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the registration at the import of `modeling_clex` is no longer needed."""
    config = transformers.LlamaConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=32, vocab_size=16
    )
    config.rope_parameters = {"rope_type": "clex", "rope_theta": 10_000.0}
    monkeypatch.delitem(ROPE_INIT_FUNCTIONS, "clex", raising=False)
    with pytest.raises(KeyError, match="clex"):
        transformers.LlamaForCausalLM(config)


def test_fake_positions_are_taken_for_packed_sequences() -> None:
    assert masking_utils.find_packed_sequence_indices(torch.arange(8)[None]) is None
    with FakeTensorMode():
        positions = torch.arange(8)[None]
        assert masking_utils.find_packed_sequence_indices(positions) is not None  # else the patch is not needed
        with no_packed_sequences():
            assert masking_utils.find_packed_sequence_indices(positions) is None
    assert masking_utils.find_packed_sequence_indices(torch.tensor([[0, 1, 0, 1]])) is not None
