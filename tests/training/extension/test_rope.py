"""The extensions that transformers has, against their formulae; defaults and refusals of all."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, OPTConfig

from longshort.training.extension import extend_context
from tests.errors import assert_facts, user_error
from tests.training.extension.build import ARCHITECTURES, LENGTH, THETA, base_config, extended, settings, tokens

D = 8  # dimensions of a head
BASE = THETA ** -(np.arange(0, D, 2) / D)


def frequencies(model):
    return model.model.rotary_emb.inv_freq.double().numpy()


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-6)


@pytest.mark.parametrize("extension", ["linear", "longqlora"])
def test_linear_divides_position_ids(extension):
    plain, model = extended("none", train_length=LENGTH), extended(extension, factor=4.0)
    x = tokens(40)
    with torch.no_grad():
        # Fractional positions read as packed sequences where no mask is given.
        mask = torch.ones_like(x)
        expected = plain(x, position_ids=torch.arange(40)[None] / 4, attention_mask=mask).logits
        torch.testing.assert_close(model(x).logits, expected)
    assert model.config.max_position_embeddings == 64
    assert model.config.rope_parameters["rope_type"] == "linear"


def test_dynamic_changes_only_beyond_the_original_length():
    plain, model = extended("none", train_length=LENGTH), extended("dynamic", factor=4.0)
    assert model.config.max_position_embeddings == LENGTH
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(LENGTH)).logits, plain(tokens(LENGTH)).logits)
        model(tokens(40))
    # NTK-aware: the base grows with the length read, here 40 tokens over 16 (bloc97, 2023).
    base = THETA * (4 * 40 / 16 - 3) ** (D / (D - 2))
    close(frequencies(model), base ** -(np.arange(0, D, 2) / D))


@pytest.mark.parametrize(
    ("options", "fast", "slow", "truncate", "scaling"),
    [
        ({}, 32, 1, True, 0.1 * math.log(4) + 1),
        ({"beta_fast": 2, "beta_slow": 0.25, "truncate": False, "attention_factor": 3}, 2, 0.25, False, 3.0),
    ],
)
def test_yarn_is_its_papers_ramp(options, fast, slow, truncate, scaling):
    model = extended("yarn", factor=4.0, extension_options=options)
    # Peng et al. 2024: dimension at which L0 holds so many turns; between the two a linear ramp.
    low, high = (D * math.log(LENGTH / (turns * 2 * math.pi)) / (2 * math.log(THETA)) for turns in (fast, slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, D - 1)
    interpolated = np.clip((np.arange(D // 2) - low) / (high - low), 0, 1)
    close(frequencies(model), BASE * (1 - interpolated) + BASE / 4 * interpolated)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(scaling)
    assert model.config.rope_parameters["original_max_position_embeddings"] == LENGTH
    assert model.config.max_position_embeddings == 64


@pytest.mark.parametrize("options", [{}, {"low_freq_factor": 2, "high_freq_factor": 3.5}])
def test_llama3_keeps_short_waves_and_divides_long_ones(options):
    model = extended("llama3", factor=8.0, extension_options=options)
    low, high = options.get("low_freq_factor", 1), options.get("high_freq_factor", 4)
    expected = []
    for frequency in BASE:
        turns = LENGTH * frequency / (2 * math.pi)  # in the original length
        share = min(max((turns - low) / (high - low), 0), 1)
        expected.append((1 - share) * frequency / 8 + share * frequency)
    close(frequencies(model), expected)
    assert model.config.rope_parameters["original_max_position_embeddings"] == LENGTH


def longrope_frequencies(model, length):
    with torch.no_grad():
        model(tokens(length))
    return frequencies(model)


def test_longrope_without_factors_is_ntk_aware():
    model = extended("longrope", factor=4.0)
    close(longrope_frequencies(model, LENGTH), BASE)
    base = THETA * 4 ** (D / (D - 2))
    close(longrope_frequencies(model, LENGTH + 1), base ** -(np.arange(0, D, 2) / D))
    scaling = math.sqrt(1 + math.log(4) / math.log(LENGTH))  # Ding et al. 2024
    assert model.model.rotary_emb.attention_scaling == pytest.approx(scaling)


def test_longrope_takes_factors_as_a_list_and_from_a_file(tmp_path):
    file = tmp_path / "factors.json"
    file.write_text(json.dumps([1, 2, 3, 4.5]))
    options = {"long_factor": str(file), "short_factor": [1, 1, 1, 2], "attention_factor": 1}
    model = extended("longrope", factor=4.0, extension_options=options)
    close(longrope_frequencies(model, LENGTH + 1), BASE / [1, 2, 3, 4.5])
    close(longrope_frequencies(model, LENGTH), BASE / [1, 1, 1, 2])
    assert model.model.rotary_emb.attention_scaling == 1


@pytest.mark.parametrize("extension", ["linear", "dynamic", "yarn", "longrope", "llama3", "longqlora"])
def test_transformers_finds_nothing_to_warn_of(extension, tmp_path, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model = extended(extension, factor=4.0)
        model.save_pretrained(tmp_path)
        AutoModelForCausalLM.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def test_theta_and_partial_rotary_factor_survive():
    config = GPTNeoXConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=16)
    config.rope_parameters |= {"partial_rotary_factor": 0.5, "rope_theta": 77.0}
    extend_context(config, **settings("longrope"))
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert config.rope_parameters["rope_theta"] == 77.0
    assert config.rope_parameters["long_factor"] == [1.0, 2.0]  # d = 4


def test_none_changes_nothing():
    config = base_config()
    same, model_class = extend_context(config, **settings("none", train_length=LENGTH))
    assert same is config
    assert model_class is AutoModelForCausalLM
    assert config.to_dict() == base_config().to_dict()


@pytest.mark.parametrize(
    ("extension", "train_length", "expected"),
    [
        ("linear", 17, 2),
        ("linear", 32, 2),
        ("longqlora", 33, 3),
        ("yarn", 64, 4),
        ("clex", 16, 16),
        ("eabf", 16, 2),
        ("eabf", 40, 3),
    ],
)
def test_default_factor(extension, train_length, expected):
    config, _ = extend_context(base_config(), **settings(extension, train_length=train_length))
    assert config.max_position_embeddings == expected * LENGTH


def test_dynamic_within_the_original_length_is_warned_of(caplog):
    extend_context(base_config(), **settings("dynamic", train_length=LENGTH, factor=2.0))
    (warning,) = caplog.messages
    assert_facts(warning, f"train_length {LENGTH}", f"{LENGTH} positions", "'llama'")


def test_longrope_within_the_original_length_with_a_short_factor_is_trained():
    options = {"short_factor": [1, 1, 1, 2]}
    config, _ = extend_context(
        base_config(), **settings("longrope", train_length=LENGTH, factor=2.0, extension_options=options)
    )
    assert config.rope_parameters["short_factor"] == [1, 1, 1, 2]


RESCALED = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
NEOX = GPTNeoXConfig(hidden_size=32, num_attention_heads=4, max_position_embeddings=16)
LAYER_TYPES = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}


@pytest.mark.parametrize(
    ("config", "changes", "field", "facts"),
    [
        (GPT2Config(), {"extension": "linear"}, "extension", ("'linear'", "'gpt2'", "--extension none")),
        (OPTConfig(), {"extension": "clex"}, "extension", ("'clex'", "'opt'", "--extension none")),
        (
            Gemma3TextConfig(rope_parameters=LAYER_TYPES),
            {"extension": "yarn"},
            "extension",
            ("'yarn'", "'gemma3_text'", "--extension none"),
        ),
        (NEOX, {"extension": "clex"}, "extension", ("'clex'", "'gpt_neox'", *ARCHITECTURES, "yarn", "llama3")),
        (NEOX, {"extension": "eabf"}, "extension", ("'eabf'", "'gpt_neox'", *ARCHITECTURES, "yarn", "llama3")),
        (base_config(**RESCALED), {"extension": "yarn"}, "extension", ("'llama'", "(linear)", "--extension none")),
        (base_config(**RESCALED), {"extension": "clex"}, "extension", ("'llama'", "(linear)", "--extension none")),
        (base_config(), {"extension": "linear", "train_length": 16}, "factor", ("train_length 16", "--factor")),
        (base_config(), {"extension": "dynamic", "train_length": 9}, "factor", ("train_length 9", 16, "--factor")),
        (
            base_config(),
            {"extension": "longrope", "train_length": 16, "factor": 2.0},
            "train_length",
            (16, "--train-length", "short_factor"),
        ),
        (
            base_config(),
            {"extension": "linear", "train_length": 33, "factor": 2.0},
            "train_length",
            (33, 2, 16, "--factor to 3"),
        ),
        (
            base_config(),
            {"extension": "clex", "train_length": 600},
            "train_length",
            (600, "factor 16", "--factor to 38"),
        ),
        (
            base_config(),
            {"extension": "longrope", "extension_options": {"long_factor": [1, 2]}},
            "long_factor",
            ("long_factor", 4),
        ),
        (
            base_config(),
            {"extension": "longrope", "extension_options": {"short_factor": "/no/f.json"}},
            "short_factor",
            ("short_factor", "'/no/f.json'", "No such file or directory"),
        ),
    ],
)
def test_contradictions_are_refused_in_one_line(config, changes, field, facts):
    with user_error("unsupported" if field == "extension" else "setting", *facts, field=field):
        extend_context(config, **settings(**changes))


def test_a_file_that_holds_no_factors_is_refused(tmp_path):
    file = tmp_path / "factors.json"
    for content, facts in (("{", (str(file), "JSON", "line 1")), ('[1, 2, "3", 4]', (4, 0))):
        file.write_text(content)
        with user_error("setting", "long_factor", *facts, field="long_factor"):
            extend_context(base_config(), **settings("longrope", extension_options={"long_factor": str(file)}))


@pytest.mark.parametrize("extension", ["clex", "eabf"])
def test_an_extended_base_is_refused_again(extension):
    config, _ = extend_context(base_config(), **settings(extension))
    for again in ("linear", "clex", "eabf"):
        with user_error("unsupported", f"'{config.model_type}'", f"({extension})", field="extension"):
            extend_context(config, **settings(again))


@pytest.mark.parametrize(
    ("extension", "options", "facts"),
    [
        ("linear", {"theta": 1}, ()),
        ("eabf", {"step": 1}, ("theta", "unscaled_layers")),
        ("yarn", {"beta_fast": 0}, (0, "above 0")),
        ("yarn", {"beta_slow": True}, (True, "above 0")),
        ("yarn", {"attention_factor": "x"}, ("'x'", "above 0")),
        ("yarn", {"truncate": 1}, (1, "true", "false")),
        ("longrope", {"long_factor": [1, 0]}, ([1, 0], "above 0", "JSON")),
        ("longrope", {"short_factor": 2}, (2, "above 0", "JSON")),
        ("llama3", {"low_freq_factor": 4}, (4, "high_freq_factor", 4.0)),
        ("llama3", {"high_freq_factor": math.nan}, ("nan", "above 0")),
        ("clex", {"hidden_multiplier": 0}, (0, "above 0")),
        ("clex", {"activation": ["silu"]}, (["silu"], "tanh")),
        ("clex", {"step": 2}, (2, 0, 1)),
        ("eabf", {"theta": 1}, (1, "above 1")),
        ("eabf", {"unscaled_layers": 1.5}, (1.5, "whole number", 0)),
        ("longqlora", {"groups": 0}, (0, "whole number")),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(extension, options, facts):
    (option,) = options
    with user_error("setting", f"'{extension}'", option, *facts, field="extension_options"):
        settings(extension, extension_options=options)


def test_options_that_are_null_take_their_default():
    options = {"hidden_multiplier": None, "activation": "tanh"}
    config, _ = extend_context(base_config(), **settings("clex", extension_options=options))
    assert config.rope_parameters["hidden_multiplier"] == 1
    assert config.rope_parameters["activation"] == "tanh"


def test_the_greatest_t_is_a_whole_number():
    with user_error("setting", 2.5, "'clex'", field="factor"):
        settings("clex", factor=2.5)
