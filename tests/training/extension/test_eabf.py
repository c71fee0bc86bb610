"""EABF: its attention against a dense one written by hand, with and without a cache."""

import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from longshort.scoring.lm_head import LMHead
from longshort.scoring.positions import depends_on_length
from longshort.scoring.prefix import score_prefix
from longshort.training.extension import modeling_eabf
from tests.training.extension.build import ARCHITECTURES, LENGTH, THETA, assert_close_logits, dense_logits, tokens
from tests.training.extension.build import extended as build

FREQUENCIES = 1 / 500_000 ** (torch.arange(0, 8, 2, dtype=torch.float64) / 8)


def eabf(architecture="llama", **changes):
    return build("eabf", architecture, **{"factor": 4.0} | changes)


def scale(unscaled_layers):
    def of(layer, i):
        return 1.0 if layer < unscaled_layers else max(1.0, math.log(i + 1) / math.log(LENGTH))

    return of


@torch.no_grad()
def logits(model, x):
    return model(x).logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unscaled_layers", [2, 0])
def test_it_is_the_dense_attention(architecture, unscaled_layers):
    options = {"unscaled_layers": unscaled_layers} if unscaled_layers == 0 else None  # 2 is the default
    model = eabf(architecture, extension_options=options)
    x = tokens(60)[0]
    expected = dense_logits(model, x, FREQUENCIES, query_scale=scale(unscaled_layers))
    assert_close_logits(logits(model, x[None])[0], expected)
    for other in (0, 1, 2, 3):
        if other != unscaled_layers:  # the test sees which layers are scaled
            different = dense_logits(model, x, FREQUENCIES, query_scale=scale(other))
            assert (different - expected).abs().max() / expected.abs().max() > 2e-3


@pytest.mark.parametrize(
    ("architecture", "window"),
    [
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}),
    ],
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_sliding_windows_stay(architecture, window, implementation):
    model = eabf(architecture, model_changes=window)
    model.set_attn_implementation(implementation)
    x = tokens(40)[0]
    first = window.get("max_window_layers", 0)
    expected = dense_logits(
        model, x, FREQUENCIES, query_scale=scale(2), window=lambda layer: 7 if layer >= first else None
    )
    assert_close_logits(logits(model, x[None])[0], expected)


@pytest.mark.parametrize(
    ("architecture", "window", "expected"),
    [
        ("llama", {}, [None, None, None]),
        ("mistral", {"sliding_window": 7}, [7, 7, 7]),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}, [None, None, 7]),
    ],
)
def test_flash_attention_is_told_the_window(architecture, window, expected, monkeypatch):
    """It takes the window as an argument, where the others take it from the mask."""
    model, told = eabf(architecture, model_changes=window), []
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(*args, sliding_window, **kwargs):
        told.append(sliding_window)
        return sdpa(*args, **kwargs)

    interface = SimpleNamespace(get_interface=lambda *_: attend)
    monkeypatch.setattr(modeling_eabf, "ALL_ATTENTION_FUNCTIONS", interface)
    logits(model, tokens(20))
    assert told == expected


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_every_attention_implementation_reads_scaled_queries(implementation):
    model = eabf()
    x = tokens(40)
    expected = dense_logits(model, x[0], FREQUENCIES, query_scale=scale(2))
    model.set_attn_implementation(implementation)
    assert_close_logits(logits(model, x)[0], expected)


def test_within_the_original_length_only_the_base_frequency_differs():
    model, plain = eabf(extension_options={"theta": THETA}), build("none", train_length=LENGTH)
    plain.load_state_dict(model.state_dict())
    x = tokens(LENGTH)
    assert torch.equal(logits(model, x), logits(plain, x))
    assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": THETA}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_with_a_cache_equals_full_context(architecture):
    model = eabf(architecture)
    x, options = tokens(10), {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    expected = x
    for _ in range(30):
        expected = torch.cat((expected, logits(model, expected)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(model.generate(x, **options), expected)
    assert torch.equal(model.generate(x, use_cache=False, **options), expected)


def test_padding_on_the_left_is_no_position():
    model = eabf()
    x = tokens(30)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), x), dim=1)
    mask = (torch.arange(35)[None] >= 5).long()
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        actual = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    assert_close_logits(actual, logits(model, x), 1e-5)


def test_adapters_on_the_queries_are_scaled_too():
    model = get_peft_model(eabf(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    x = tokens(40)
    adapted = logits(model, x)
    merged = model.merge_and_unload()
    assert_close_logits(adapted, logits(merged, x), 1e-4)
    assert_close_logits(adapted[0], dense_logits(merged, x[0], FREQUENCIES, query_scale=scale(2)))


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = eabf().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        x = tokens(30, batch=2)
        model(x, labels=x, use_cache=False).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_evaluator_finds_its_body_and_reads_all_lengths_in_one_pass(caplog):
    model = eabf()
    x = tokens(60)
    assert LMHead(model).backbone is model.model
    assert not depends_on_length(model, x, [8, 60], score_prefix(model, x))
    assert not caplog.records
