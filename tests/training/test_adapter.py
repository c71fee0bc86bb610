"""LoRA on chosen modules, modules trained in full next to it, and adapters that are saved as such."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from longshort.cli import app
from longshort.training import train
from tests.errors import user_error
from tests.training.test_train import folder, scratch, weights

__all__ = ["folder"]  # the fixture
TOKENS = torch.arange(14)[None]
CHANGES = {"lora_rank": 3, "lora_targets": ("q_proj", "mlp.up_proj"), "lora_modules_to_save": ("embed_tokens", "norm")}
TARGETS = {f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")}
IN_FULL = {"model.embed_tokens.weight", "model.norm.weight"}


def adapted(folder, output, **changes):
    config = scratch(folder, output, model_config=None, base=str(folder / "base"), **CHANGES | changes)
    return train(config, progress=False)


@pytest.fixture(scope="module")
def merged_run(folder, tmp_path_factory):
    return adapted(folder, tmp_path_factory.mktemp("merged") / "run")


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    return adapted(folder, tmp_path_factory.mktemp("adapter") / "run", keep_adapter=True)


def test_only_what_was_chosen_is_trained(folder, merged_run):
    before, after = weights(folder / "base"), weights(merged_run)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == TARGETS | IN_FULL
    for name in TARGETS:
        assert torch.linalg.matrix_rank((after[name] - before[name]).double(), rtol=1e-4) == 3
    record = json.loads((merged_run / "longshort.json").read_text())["config"]
    assert record["lora_targets"] == ["q_proj", "mlp.up_proj"]
    assert record["lora_modules_to_save"] == ["embed_tokens", "norm"]


def test_an_adapter_on_its_base_is_the_merged_model(folder, merged_run, adapter):
    assert {path.name for path in adapter.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors", "longshort.json", "tokenizer.json"),
        *("tokenizer_config.json", "training.png", "training_log.csv"),
    }
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, adapter)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(merged_run)(TOKENS).logits
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert (model(TOKENS).logits - expected).abs().max() > 1e-2
    own = json.loads((adapter / "adapter_config.json").read_text())
    assert own["base_model_name_or_path"] == str(folder / "base")
    assert AutoTokenizer.from_pretrained(adapter)("é")["input_ids"] == [195, 169]
    card = (adapter / "README.md").read_text()
    assert "library_name: peft" in card
    assert "PeftModel.from_pretrained(base" in card


def test_evaluations_read_an_adapter(folder, merged_run, adapter, tmp_path):
    def values(name, pretrained, *more):
        settings = ["--corpus", str(folder / "corpus.jsonl"), "--lengths", "8,16", "--train-length", "16"]
        settings += ["--num-docs", "2", "--tasks", "longshort_perplexity", "--device", "cpu", *more]
        done = CliRunner().invoke(app, ["eval", str(pretrained), *settings, "-o", str(tmp_path / name)])
        assert done.exit_code == 0, (done.output, done.exception)
        (results,) = (tmp_path / name).rglob("results_*.json")
        found = json.loads(results.read_text())["results"]["longshort_perplexity"]
        return {key: value for key, value in found.items() if isinstance(value, float)}

    whole = values("merged", merged_run)
    assert whole
    assert values("adapter", folder / "base", "--model-args", f"peft={adapter}") == pytest.approx(
        whole, rel=1e-5, abs=1e-6
    )
    assert values("base", folder / "base") != pytest.approx(whole, rel=1e-3)


def test_an_adapter_in_half_precision(folder, adapter, tmp_path):
    half = load_file(
        adapted(folder, tmp_path / "run", keep_adapter=True, save_dtype="bfloat16") / "adapter_model.safetensors"
    )
    whole = load_file(adapter / "adapter_model.safetensors")
    assert half.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(half[name], value.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("changes", "kind", "field", "facts"),
    [
        ({"lora_targets": ("q_proj", "query")}, "setting", "lora_targets", ("'query'", "v_proj", "lm_head")),
        ({"lora_targets": ("input_layernorm",)}, "setting", "lora_targets", ("input_layernorm", "LlamaRMSNorm")),
        ({"lora_targets": ("q_proj", "norm")}, "setting", "lora_targets", ("'norm'", "lora_modules_to_save")),
        ({"lora_modules_to_save": ("head",)}, "setting", "lora_modules_to_save", ("'head'", "lm_head")),
        ({"lora_rank": 0}, "setting", "lora_targets", ("--lora-rank",)),
        ({"lora_rank": 0, "lora_targets": ()}, "setting", "lora_modules_to_save", ("--lora-rank",)),
        (
            {"keep_adapter": True, "extension": "linear", "factor": 2.0},
            "setting",
            "keep_adapter",
            ("'linear'", "--keep-adapter"),
        ),
    ],
)
def test_modules_that_cannot_be_chosen(folder, tmp_path, changes, kind, field, facts):
    with user_error(kind, *facts, field=field):
        adapted(folder, tmp_path / "run", **changes)
    assert not list(tmp_path.iterdir())


def test_an_adapter_requires_a_base(folder, tmp_path):
    with user_error("setting", "--base", field="keep_adapter"):
        scratch(folder, tmp_path / "run", lora_rank=2, keep_adapter=True)


def test_an_adapter_would_lack_the_frequencies_of_a_clex_base(folder, tmp_path):
    clex = train(scratch(folder, tmp_path / "clex", extension="clex", factor=4.0, steps=1), progress=False)
    with user_error("unsupported", "--keep-adapter", "longshort_clex_llama", field="keep_adapter"):
        changes = {"base": str(clex), "trust_remote_code": True, "lora_rank": 2, "keep_adapter": True}
        train(scratch(folder, tmp_path / "run", model_config=None, **changes), progress=False)


@pytest.mark.parametrize("name", ["lora_targets", "lora_modules_to_save"])
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_tied_weights_stay_tied(folder, tmp_path, name, module):
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "tied.json").write_text(json.dumps(config))
    changes = {"model_config": str(tmp_path / "tied.json"), "lora_rank": 2, name: (module,)}
    with user_error("unsupported", f"'{module}'", field=name):
        train(scratch(folder, tmp_path / "run", **changes), progress=False)
