"""Checkpoints and adapters that lack weights, however quietly the libraries take it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from longshort.errors import UserError
from longshort.lmeval.evaluate import load_checkpoint


def without(folder: Path, to: Path, is_lost: Callable[[str], bool], file: str = "model.safetensors") -> Path:
    """A copy whose file lacks some tensors."""
    shutil.copytree(folder, to)
    kept = {name: value for name, value in load_file(to / file).items() if not is_lost(name)}
    save_file(kept, to / file, metadata={"format": "pt"})
    return to


@pytest.fixture(params=[transformers.logging.WARNING, transformers.logging.ERROR], ids=["warning", "error"])
def verbosity(request: pytest.FixtureRequest) -> object:
    """As TRANSFORMERS_VERBOSITY sets it."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(request.param)
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize(
    ("lost", "count", "first"),
    [
        ("lm_head", 1, "lm_head.weight"),
        ("up_proj", 2, "model.layers.0.mlp.up_proj.weight"),  # of every layer
        ("model.layers.1.", 9, "model.layers.1.input_layernorm.weight"),
    ],
)
def test_a_checkpoint_that_lacks_weights(
    llama: Path, tmp_path: Path, verbosity: None, lost: str, count: int, first: str
) -> None:
    folder = without(llama, tmp_path / "lacking", lambda name: lost in name)
    with pytest.raises(UserError, match=f"lacking' lacks {count} of its weights, as {first}: they would be random"):
        load_checkpoint({"pretrained": str(folder)}, device="cpu")


def test_what_is_whole_or_shared_is_loaded(llama: Path, gpt2: Path) -> None:
    before = transformers.PreTrainedModel.__dict__["from_pretrained"]
    assert "lm_head.weight" not in load_file(gpt2 / "model.safetensors")  # it is the embedding's
    for folder in (llama, gpt2):
        assert load_checkpoint({"pretrained": str(folder)}, device="cpu").model is not None
    assert transformers.PreTrainedModel.__dict__["from_pretrained"] is before


def test_an_adapter_that_lacks_weights(llama: Path, tmp_path: Path) -> None:
    """It would be evaluated as if it were not there."""
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "adapter")
    arguments = {"pretrained": str(llama), "peft": str(tmp_path / "adapter")}
    assert load_checkpoint(arguments, device="cpu").model is not None
    folder = without(
        tmp_path / "adapter", tmp_path / "lacking", lambda name: "layers.1" in name, "adapter_model.safetensors"
    )
    with pytest.raises(UserError, match=r"an adapter lacks some of its weights: .*layers\.1.* Save it again\."):
        load_checkpoint(arguments | {"peft": str(folder)}, device="cpu")
