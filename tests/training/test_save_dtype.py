"""Weights are saved in another dtype; CLEX's frequencies are not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from longshort.training import train
from longshort.training.save_dtype import convert_weights
from tests.errors import user_error
from tests.training.test_train import folder, scratch

__all__ = ["folder"]  # the fixture


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_a_clex_checkpoint_in_half_precision(folder, tmp_path, name):
    dtype = getattr(torch, name)
    changes = {"extension": "clex", "factor": 4.0, "steps": 2}
    whole = load_file(train(scratch(folder, tmp_path / "whole", **changes), progress=False) / "model.safetensors")
    output = train(scratch(folder, tmp_path / "half", save_dtype=name, **changes), progress=False)
    half = load_file(output / "model.safetensors")
    assert half.keys() == whole.keys()
    kept = {key for key in whole if "rotary_emb" in key}
    assert len(kept) == 2
    for key, value in whole.items():
        expected = value if key in kept else value.to(dtype)
        assert half[key].dtype == expected.dtype
        assert torch.equal(half[key], expected)
    record = json.loads((output / "longshort.json").read_text())
    assert record["config"]["save_dtype"] == name
    loaded = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True, dtype="auto")
    assert {parameter.dtype for key, parameter in loaded.named_parameters() if "rotary_emb" not in key} == {dtype}
    assert {parameter.dtype for key, parameter in loaded.named_parameters() if "rotary_emb" in key} == {torch.float32}
    assert f"saved in {name}" in (output / "README.md").read_text()


def test_shards_and_their_index(tmp_path):
    for number, shape in enumerate([(3, 5), (7,)]):
        save_file({f"w{number}": torch.ones(shape)}, tmp_path / f"model-{number}.safetensors", {"format": "pt"})
    index = {"metadata": {"total_size": 88}, "weight_map": {"w0": "model-0.safetensors", "w1": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    convert_weights(tmp_path, torch.bfloat16)
    assert {value.dtype for n in (0, 1) for value in load_file(tmp_path / f"model-{n}.safetensors").values()} == {
        torch.bfloat16
    }
    index["metadata"]["total_size"] = 44
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text()) == index


def test_a_weight_beyond_float16_is_refused(tmp_path):
    save_file({"w": torch.tensor([1.0, 70_000.0])}, tmp_path / "model.safetensors")
    with user_error("setting", "w", "float16", "bfloat16", field="save_dtype"):
        convert_weights(tmp_path, torch.float16)
    assert load_file(tmp_path / "model.safetensors")["w"].dtype == torch.float32
