"""Checkpoints in the layout of the official CLEX code, and a slow float64 computation of its formula."""

import json
import math
import os

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from longshort.cli import app
from longshort.testing import tiny_tokenizer
from longshort.training.extension.clex import export_clex
from longshort.training.extension.official_clex import import_clex
from tests.errors import assert_error, user_error
from tests.training.extension.build import LENGTH, assert_close_logits, base_config, dense_logits, tokens
from tests.training.extension.official_checkpoint import DOWN, INVERSE, MAX_T, SCALING, UP, save_official

HEAD_DIM = 8


def stock(theta=10_000.0, dtype=torch.float32, **changes):
    """A Llama with large weights, so that positions make a difference."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": theta}
    config = base_config(rope_parameters=rope, vocab_size=len(tiny_tokenizer()), **changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.to(dtype)


def official_frequencies(state, t, act):
    """exp z(t) by RK4 steps of 0.01 from z(1) = ln inv_freq, [d/2] float64; the network's own θ is 10,000."""
    index = torch.arange(0, HEAD_DIM, 2).double()

    def slope(t, z):
        a = 2 * t - 1
        ntk = 1 / (10_000 * a ** (HEAD_DIM / (HEAD_DIM - 2))) ** (index / HEAD_DIM)
        change = -2 * index / (HEAD_DIM - 2) / (10_000 ** (index / HEAD_DIM) * a ** (index / (HEAD_DIM - 2) + 1))
        return act((z + ntk.log()) @ state[UP]) @ state[DOWN] + change / ntk

    z, h = state[INVERSE].log(), 0.01
    for step in range(round((t - 1) / h)):
        start = 1 + step * h
        first = slope(start, z)
        second = slope(start + h / 2, z + h / 2 * first)
        third = slope(start + h / 2, z + h / 2 * second)
        fourth = slope(start + h, z + h * third)
        z = z + h / 6 * (first + 2 * second + 2 * third + fourth)
    return z.exp()


CASES = {
    "plain": ({}, {}),
    "of 2023": ({}, {"scaling": {"type": "clex", "max_factor": MAX_T, "param_factor": 1}}),
    "wide network": ({}, {"scaling": SCALING | {"param_factor": 2, "act": "silu"}}),
    "rounded frequencies": ({}, {"rounded": True}),
    "another theta": ({"theta": 500_000.0}, {}),
    "another theta, rounded": ({"theta": 500_000.0}, {"rounded": True, "safe": False}),
    "bin": ({}, {"safe": False}),
    "shards": ({}, {"shard_size": 9000}),
    "shards, bin": ({}, {"shard_size": 9000, "safe": False}),
    "tied": ({"tie_word_embeddings": True}, {}),
}


@pytest.mark.parametrize(("model_changes", "changes"), CASES.values(), ids=CASES)
def test_frequencies_and_logits_are_those_of_the_official_formula(model_changes, changes, tmp_path):
    model = stock(**model_changes)
    state = save_official(tmp_path / "official", model, **changes)
    if "shard_size" in changes:
        assert len(list((tmp_path / "official").glob("*-of-*"))) > 2
    folder = import_clex(tmp_path / "official", tmp_path / "own")
    imported, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values())
    act = {"silu": torch.nn.functional.silu, "tanh": torch.tanh}[changes.get("scaling", SCALING).get("act", "silu")]
    for length, t in ((LENGTH, 1), (LENGTH + 1, 2), (3 * LENGTH, 3), (6 * LENGTH, MAX_T)):
        expected = official_frequencies(state, t, act)
        if t > 1:  # the network does something
            ntk = state[INVERSE] * (2 * t - 1) ** (-torch.arange(0, HEAD_DIM, 2) / (HEAD_DIM - 2))
            assert not torch.allclose(expected, ntk, rtol=0.01)
        x = tokens(length)
        with torch.no_grad():
            logits = imported(x).logits[0]
            found = imported.model.rotary_emb.frequencies(float(t))
        torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=0)
        if length <= LENGTH + 1:
            assert_close_logits(logits, dense_logits(model, x[0], expected))


@pytest.mark.parametrize("log_scale", [True, ...])
def test_the_scaling_of_queries_can_be_left_out(log_scale, tmp_path):
    save_official(tmp_path / "official", stock())
    config = json.loads((tmp_path / "official" / "config.json").read_text()) | {"log_scale": log_scale}
    config = {name: value for name, value in config.items() if value is not ...}
    (tmp_path / "official" / "config.json").write_text(json.dumps(config))
    folder = import_clex(tmp_path / "official", tmp_path / "own", ignore_log_scale=True)
    assert "log_scale" not in json.loads((folder / "config.json").read_text())


def test_an_import_keeps_the_dtype_and_the_tokenizer(tmp_path):
    state = save_official(tmp_path / "official", stock(dtype=torch.bfloat16))
    folder = import_clex(tmp_path / "official", tmp_path / "own")
    imported = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=True)
    rotary = imported.model.rotary_emb
    assert imported.dtype == torch.bfloat16
    assert rotary.up.dtype == torch.float32
    assert torch.equal(rotary.up.double(), state[UP])
    assert torch.equal(imported.lm_head.weight.double(), state["lm_head.weight"])
    assert (folder / "tokenizer.json").read_text() == (tmp_path / "official" / "tokenizer.json").read_text()
    assert imported.config.max_position_embeddings == MAX_T * LENGTH
    assert not list(tmp_path.glob("*.partial"))


def test_an_export_of_an_import_has_its_frequencies(tmp_path):
    state = save_official(tmp_path / "official", stock(theta=500_000.0), rounded=True)
    folder = export_clex(import_clex(tmp_path / "official", tmp_path / "own"), tmp_path / "stock", 3)
    exported = AutoModelForCausalLM.from_pretrained(folder)
    for length, t in ((LENGTH, 1), (3 * LENGTH, 3)):
        with torch.no_grad():
            exported(tokens(length))
        expected = official_frequencies(state, t, torch.tanh)
        torch.testing.assert_close(exported.model.rotary_emb.inv_freq.double(), expected, rtol=2e-5, atol=0)


WRONG = {
    "a stock model": ({"scaling": {"type": "linear", "factor": 2.0}}, "unsupported", ("rope_scaling", "'clex'")),
    "no scaling": ({"rope_scaling": None}, "unsupported", ("rope_scaling", "'clex'")),
    "Phi-2": ({"model_type": "phi"}, "unsupported", ("'phi'", "'llama'")),
    "Mixtral": ({"model_type": "mixtral"}, "unsupported", ("'mixtral'", "'llama'")),
    "log_scale": ({"log_scale": True}, "unsupported", ("log_scale", "config.json")),
    "log_scale by default": ({"log_scale": ...}, "unsupported", ("log_scale",)),
    "activation": ({"scaling": SCALING | {"act": "gelu"}}, "unsupported", ("act", "'gelu'")),
    "step": ({"scaling": SCALING | {"time_dt": 0}}, "unsupported", ("time_dt", 0)),
    "max_factor": ({"scaling": SCALING | {"max_factor": 2.5}}, "unsupported", ("max_factor", 2.5)),
    "no max_factor": (
        {"scaling": {"type": "clex", "param_factor": 1}}, "unsupported", ("max_factor", "None"),
    ),
    "unknown option": ({"scaling": SCALING | {"mscale": 1}}, "unsupported", ("'mscale'", "rope_scaling")),
    "length": ({"max_position_embeddings": "4k"}, "broken", ("max_position_embeddings", "'4k'")),
    "theta": ({"rope_theta": 5000.0}, "broken", (INVERSE, 5000, HEAD_DIM)),
    "shape": ({"weights": {UP: torch.zeros(8, 4)}}, "broken", (1, "model.rotary_emb.up")),
    "shape of the backbone": ({"intermediate_size": 50}, "broken", (9, "model.layers.0.mlp.down_proj.weight")),
    "missing": ({"weights": {DOWN: None}}, "broken", (1, "model.rotary_emb.down")),
    "missing layer": ({"num_hidden_layers": 4}, "broken", (9, "model.layers.3.input_layernorm.weight")),
    "unexpected": ({"weights": {"model.norm.bias": torch.zeros(32)}}, "broken", (1, "model.norm.bias")),
    "frequencies": ({"weights": {INVERSE: torch.ones(5)}}, "broken", (INVERSE, HEAD_DIM)),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "kind", "facts"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_imported_is_refused(changes, kind, facts, tmp_path):
    source = tmp_path / "official"
    save_official(source, stock(), **changes)
    with user_error(kind, source, *facts, field="checkpoint"):
        import_clex(source, tmp_path / "own")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["official"]


def test_damaged_sources_are_refused(tmp_path):
    with user_error("not_found", tmp_path / "nowhere", field="checkpoint"):
        import_clex(tmp_path / "nowhere", tmp_path / "own")
    save_official(tmp_path / "official", stock())
    file = tmp_path / "official" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with user_error("broken", tmp_path / "official", field="checkpoint"):
        import_clex(tmp_path / "official", tmp_path / "own")
    file.write_bytes(whole)
    with user_error("conflict", tmp_path / "official", field="output"):
        import_clex(tmp_path / "official", tmp_path / "official")
    folder = import_clex(tmp_path / "official", tmp_path / "own")
    with user_error("unsupported", folder, "longshort", field="checkpoint"):
        import_clex(folder, tmp_path / "again")
    (tmp_path / "official" / "config.json").write_text("{")
    with user_error("broken", tmp_path / "official", field="checkpoint"):
        import_clex(tmp_path / "official", tmp_path / "again")
    assert not list(tmp_path.glob("again*"))


class Harmful:
    def __reduce__(self):
        return (os.system, ("echo harmful",))


def test_pickled_code_does_not_run(tmp_path, capfd):
    save_official(tmp_path / "official", stock(), safe=False)
    torch.save({"model.norm.weight": Harmful()}, tmp_path / "official" / "pytorch_model.bin")
    with user_error("broken", tmp_path / "official", field="checkpoint"):
        import_clex(tmp_path / "official", tmp_path / "own")
    assert "harmful" not in capfd.readouterr().out


def test_the_command(tmp_path):
    save_official(tmp_path / "official", stock())
    command = ["import-clex", str(tmp_path / "official"), "-o", str(tmp_path / "own")]
    assert CliRunner().invoke(app, command).exit_code == 0
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert config["model_type"] == "longshort_clex_llama"
    assert math.isclose(config["rope_parameters"]["step"], 0.01)
    result = CliRunner().invoke(app, command)
    assert_error(result.exception, "conflict", tmp_path / "own", field="output")
