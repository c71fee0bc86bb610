"""Compiled layers train to the same weights."""

import pytest
from torch import nn

from longshort.training import train
from longshort.training.compiling import compile_layers
from tests.errors import user_error
from tests.training.test_train import distance, folder, scratch

__all__ = ["folder"]  # the fixture


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 3, "loss": "dense", "gradient_checkpointing": True}])
def test_compiled_layers_train_to_the_same_weights(folder, tmp_path, monkeypatch, changes):
    """TorchDynamo and AOTAutograd run, without Inductor, whose C++ takes a minute to compile."""
    compiled, own = [], nn.Module.compile

    def compile(layer):
        compiled.append(type(layer).__name__)
        own(layer, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile)
    changes = {"learning_rate": 1e-3, "steps": 2, **changes}
    plain = train(scratch(folder, tmp_path / "plain", **changes), progress=False)
    assert not compiled
    output = train(scratch(folder, tmp_path / "compiled", torch_compile=True, **changes), progress=False)
    assert compiled == ["LlamaDecoderLayer"] * 2
    assert distance(plain, output) < 1e-6


def test_a_model_without_layers_that_can_be_compiled():
    model = nn.Linear(2, 2)
    model.config = type("Config", (), {"model_type": "linear"})
    with user_error("unsupported", "'linear'", "--torch-compile", field="torch_compile"):
        compile_layers(model)
