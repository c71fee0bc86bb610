"""Adapters: where they sit, what trains, and that the merged model is a plain one."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from longshort.training import lora
from longshort.training.lora import (
    EMBEDDINGS_AND_NORMS,
    add_lora,
    can_quantize,
    merged,
    quantization_config,
    trained_state,
)
from tests.errors import user_error
from tests.models import random_tokens, tiny_model

MODELS = ["llama", "qwen3", "gpt2", "gpt_neox"]
RANK, ALPHA = 3, 5.0


class LearnedRotary(nn.Module):
    """Stands for CLEX: something learned beside the layers, with linear layers and a parameter of its own."""

    def __init__(self, rotary):
        super().__init__()
        self.rotary = rotary
        self.up = nn.Linear(4, 4, bias=False)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x, position_ids):
        cosine, sine = self.rotary(x, position_ids)
        factor = (self.up(self.scale).repeat(2) * 0.1 + 1).to(cosine)  # [D]
        return cosine * factor, sine * factor


def model_of(name, learned_rotary=False):
    model = copy.deepcopy(tiny_model(name, sharpness=3.0))
    if learned_rotary:
        torch.manual_seed(7)
        model.model.rotary_emb = LearnedRotary(model.model.rotary_emb)
    return model


def train(model, steps=3, batch=2):
    """Move everything that is trainable a good way."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(steps):
        tokens = random_tokens(batch, 12, seed=step)
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they start at zero, and three steps are few
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model.eval()


def linear_layers(model):
    head = model.get_output_embeddings()
    return {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def logits(model):
    with torch.no_grad():
        return model(random_tokens(3, 20, seed=9)).logits


@pytest.mark.parametrize("name", MODELS)
def test_adapters_are_on_every_linear_layer_but_the_head(name):
    expected = linear_layers(tiny_model(name))
    assert len(expected) in (8, 14)  # two layers of 4 or 7; the head is none of them
    adapted = add_lora(model_of(name), RANK, ALPHA, 0.1)
    state = {key: value for key, value in adapted.named_parameters() if value.requires_grad}
    sides = {"lora_A", "lora_B"}
    assert set(state) == {f"base_model.model.{layer}.{side}.default.weight" for layer in expected for side in sides}
    assert {min(value.shape) for value in state.values()} == {RANK}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_merged_weights_are_the_base_and_a_product(name, dropout):
    base = model_of(name)
    adapted = train(add_lora(model_of(name), RANK, ALPHA, dropout))
    trained = trained_state(adapted)
    before = {key: value.clone() for key, value in adapted.state_dict().items()}
    result = merged(model_of(name), RANK, ALPHA, trained)
    assert type(result) is type(base)
    layers = linear_layers(base)
    plain, state = base.state_dict(), result.state_dict()
    assert set(state) == set(plain)
    for key, value in plain.items():
        layer = key.removesuffix(".weight")
        if layer in layers:
            a, b = (trained[f"base_model.model.{layer}.lora_{side}.default.weight"].double() for side in "AB")
            change = ALPHA / RANK * b @ a  # [out, in]
            assert change.abs().max() > 1e-3
            expected = value.double() + (change.T if name == "gpt2" else change)
            torch.testing.assert_close(state[key].double(), expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(state[key], value)
    torch.testing.assert_close(logits(result), logits(adapted), rtol=1e-5, atol=1e-5)
    assert (logits(result) - logits(base)).abs().max() > 0.05
    for key, value in adapted.state_dict().items():  # the model in training is untouched
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_stock_loader_opens_what_is_saved(tmp_path, name):
    adapted = train(add_lora(model_of(name), RANK, ALPHA, 0.05))
    result = merged(model_of(name), RANK, ALPHA, trained_state(adapted))
    result.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert "peft" not in (tmp_path / "config.json").read_text()
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert type(loaded) is type(tiny_model(name))
    assert torch.equal(logits(loaded), logits(result))


def test_dropout_is_of_training_only():
    adapted = train(add_lora(model_of("llama"), RANK, ALPHA, 0.5))
    assert torch.equal(logits(adapted), logits(adapted))
    adapted.train()
    assert not torch.equal(logits(adapted), logits(adapted))


def test_adapters_change_nothing_at_first():
    assert torch.equal(logits(add_lora(model_of("llama"), RANK, ALPHA, 0.1).eval()), logits(model_of("llama")))


def test_extra_parameters_are_trained_in_full_and_have_no_adapters():
    extra = ("rotary_emb",)
    adapted = add_lora(model_of("llama", learned_rotary=True), RANK, ALPHA, 0.1, extra)
    before = trained_state(adapted)
    train(adapted)
    trained = trained_state(adapted)
    own = {key for key in trained if "lora_" not in key}
    assert own == {f"base_model.model.model.rotary_emb.{name}" for name in ("scale", "up.weight")}
    assert len(trained) == 2 * 14 + 2
    assert not any(torch.equal(trained[key], before[key]) for key in own)
    result = merged(model_of("llama", learned_rotary=True), RANK, ALPHA, trained, extra)
    for key in own:
        assert torch.equal(result.state_dict()[key.removeprefix("base_model.model.")], trained[key])
    torch.testing.assert_close(logits(result), logits(adapted), rtol=1e-5, atol=1e-5)


# The parameters with "embed" or "norm" in their names, as LongLoRA's code chooses them. The head is none of them.
LONGLORA = {
    "llama": {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"model.layers.{i}.{name}_layernorm.weight" for i in range(2) for name in ("input", "post_attention")),
    },
    "qwen3": {
        "model.embed_tokens.weight",
        "model.norm.weight",
        *(f"model.layers.{i}.{name}_layernorm.weight" for i in range(2) for name in ("input", "post_attention")),
        *(f"model.layers.{i}.self_attn.{name}_norm.weight" for i in range(2) for name in "qk"),
    },
    "gpt_neox": {
        "gpt_neox.embed_in.weight",
        *(
            f"gpt_neox.layers.{i}.{name}_layernorm.{part}"
            for i in range(2)
            for name in ("input", "post_attention")
            for part in ("weight", "bias")
        ),
        "gpt_neox.final_layer_norm.weight",
        "gpt_neox.final_layer_norm.bias",
    },
}


@pytest.mark.parametrize("name", LONGLORA)
def test_embeddings_and_norms_are_trained_as_longlora_does(name):
    adapted = add_lora(model_of(name), RANK, ALPHA, 0.0, EMBEDDINGS_AND_NORMS)
    before = trained_state(adapted)
    own = {key.removeprefix("base_model.model.") for key in before if "lora_" not in key}
    assert own == LONGLORA[name]
    assert len(before) == len(own) + 2 * len(linear_layers(tiny_model(name)))
    trained = trained_state(train(adapted))
    assert not any(torch.equal(trained[key], before[key]) for key in trained)
    result, base = merged(model_of(name), RANK, ALPHA, trained, EMBEDDINGS_AND_NORMS).state_dict(), model_of(name)
    layers = linear_layers(base)
    for key, value in base.state_dict().items():
        layer = key.removesuffix(".weight")
        if layer in layers:
            a, b = (trained[f"base_model.model.{layer}.lora_{side}.default.weight"].double() for side in "AB")
            value = value.double() + ALPHA / RANK * b @ a
        elif key in own:
            value = trained[f"base_model.model.{key}"]
        torch.testing.assert_close(result[key].double(), value.double(), rtol=1e-5, atol=1e-6)


def test_a_shared_head_is_trained_with_the_embedding():
    model = model_of("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    trained = trained_state(train(add_lora(model, RANK, ALPHA, 0.0, EMBEDDINGS_AND_NORMS)))
    fresh = model_of("llama")
    fresh.config.tie_word_embeddings = True
    fresh.tie_weights()
    result = merged(fresh, RANK, ALPHA, trained, EMBEDDINGS_AND_NORMS)
    assert result.lm_head.weight is result.model.embed_tokens.weight
    assert torch.equal(result.lm_head.weight, trained["base_model.model.model.embed_tokens.weight"])


def test_a_model_without_such_names_is_refused():
    with user_error("unsupported", "'gpt2'", "'embed'", field="train_embeddings_and_norms"):
        add_lora(model_of("gpt2"), RANK, ALPHA, 0.0, EMBEDDINGS_AND_NORMS)


def test_the_trained_state_is_a_copy():
    adapted = add_lora(model_of("llama"), RANK, ALPHA, 0.0)
    state = trained_state(adapted)
    (key, value), *_ = state.items()
    adapted.get_parameter(key).data += 1
    assert not torch.equal(adapted.get_parameter(key), value)
    assert not value.requires_grad


def test_a_gathered_state_is_used_under_its_names():
    """Sharded models name their parameters by their wrappers; what is gathered has the plain names."""
    adapted = train(add_lora(model_of("llama"), RANK, ALPHA, 0.0))
    expected = trained_state(adapted)
    full = {key: value + 1 for key, value in adapted.state_dict().items()}

    class Wrapper(nn.Module):
        def __init__(self, name, module):
            super().__init__()
            setattr(self, name, module)

    layers = adapted.base_model.model.model.layers
    layers[0] = Wrapper("_fsdp_wrapped_module", Wrapper("_checkpoint_wrapped_module", layers[0]))
    state = trained_state(adapted, full)
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value + 1, rtol=0, atol=0)


def test_a_state_of_other_settings_is_refused():
    trained = trained_state(add_lora(model_of("llama"), RANK, ALPHA, 0.0))
    del trained[min(trained)]
    with pytest.raises(ValueError, match=r"\b1 .*base_model\..*lora_A"):
        merged(model_of("llama"), RANK, ALPHA, trained)
    extra = ("rotary_emb",)
    trained = trained_state(add_lora(model_of("llama", learned_rotary=True), RANK, ALPHA, 0.0, extra))
    with pytest.raises(ValueError, match=r"\b2 .*rotary_emb\.scale"):
        merged(model_of("llama"), RANK, ALPHA, trained, extra)


@settings(deadline=None, max_examples=10)
@given(rank=st.integers(1, 6), alpha=st.floats(0.5, 64), seed=st.integers(0, 100))
def test_merging_is_the_same_at_every_rank_and_scale(rank, alpha, seed):
    torch.manual_seed(seed)
    adapted = add_lora(model_of("llama"), rank, alpha, 0.0).eval()
    for key, value in adapted.named_parameters():
        if "lora_B" in key:
            value.data.normal_(std=0.1 / alpha)
    result = merged(model_of("llama"), rank, alpha, trained_state(adapted))
    torch.testing.assert_close(logits(result), logits(adapted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("bitsandbytes", [False, True])
def test_four_bits_take_a_gpu_and_bitsandbytes(monkeypatch, cuda, bitsandbytes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(lora, "is_bitsandbytes_available", lambda: bitsandbytes)
    assert can_quantize() is (cuda and bitsandbytes)


def test_four_bits_are_those_of_qlora():
    config = quantization_config()
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.bfloat16
