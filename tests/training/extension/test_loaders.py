"""What vLLM and llama.cpp make of the config of each extension, compared with transformers; table in docs/loaders.md.

Their formulas are written out here in float64. Where vLLM is installed, its own code runs too.
"""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from longshort.testing import tiny_tokenizer
from longshort.training.extension.clex import export_clex
from tests.training.extension.build import LENGTH, extended

FACTOR = 4.0
YARN = {"beta_fast": 2.0, "beta_slow": 0.25, "attention_factor": 1.25, "truncate": False}
LONGROPE = {"long_factor": [1, 2, 3, 4.5], "attention_factor": 0.9}

# Name: extension, architecture, factor, options.
CHECKPOINTS = {
    "linear": ("linear", "llama", FACTOR, {}),
    "linear-2.3": ("linear", "mistral", 2.3, {}),
    "linear-qwen3": ("linear", "qwen3", FACTOR, {}),
    "longqlora": ("longqlora", "qwen2", FACTOR, {}),
    "yarn": ("yarn", "qwen3", FACTOR, {}),
    "yarn-options": ("yarn", "llama", FACTOR, YARN),
    "llama3": ("llama3", "mistral", FACTOR, {"low_freq_factor": 0.02, "high_freq_factor": 1.5}),
    "llama3-qwen": ("llama3", "qwen2", FACTOR, {}),
    "longrope": ("longrope", "llama", FACTOR, {}),
    "longrope-2.3": ("longrope", "qwen3", 2.3, {}),
    "longrope-options": ("longrope", "qwen2", FACTOR, LONGROPE),
    "dynamic": ("dynamic", "llama", FACTOR, {}),
    "export-clex": ("clex", "qwen3", FACTOR, {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One checkpoint of each method."""
    root = tmp_path_factory.mktemp("loaders")
    for name, (extension, architecture, factor, options) in CHECKPOINTS.items():
        length = int(LENGTH * factor)
        base = {"max_sequence_length": LENGTH, "model_max_length": LENGTH} if architecture == "qwen3" else {}
        model = extended(
            extension,
            architecture,
            train_length=length,
            factor=factor,
            extension_options=options,
            model_changes=base,  # some bases have further fields of their length
        )
        folder = root / name
        if extension == "clex":
            torch.nn.init.normal_(model.model.rotary_emb.down, std=0.3)
            folder = root / "clex"
        model.save_pretrained(folder)
        if extension == "clex":
            tiny_tokenizer().save_pretrained(folder)
            export_clex(folder, root / name, int(factor))
    return root


def transformers_rotation(folder, length):
    """cos + i sin of every position and frequency, times the attention factor, in a text of `length` tokens."""
    rotary = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb
    cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])  # [1, T, d] each
    half = cos.shape[-1] // 2
    return torch.complex(cos, sin)[0, :, :half].to(torch.complex128).numpy()


@dataclass
class Reading:
    """RoPE as an engine reads it from a config."""

    frequencies: np.ndarray  # [d/2]
    attention_factor: float
    max_length: float  # of a text, where the user sets no length
    table: float = math.inf  # positions for which cos and sin are there

    def rotation(self, length):
        """cos + i sin, times the attention factor, [T, d/2]."""
        return self.attention_factor * np.exp(1j * np.arange(length)[:, None] * self.frequencies)


def plain_frequencies(config):
    d = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return config["rope_parameters"]["rope_theta"] ** -(np.arange(0, d, 2) / d)


def yarn_frequencies(config, beta_fast=32, beta_slow=1, truncate=True):
    rope, plain = config["rope_parameters"], plain_frequencies(config)
    d, original = 2 * len(plain), rope["original_max_position_embeddings"]
    low, high = (
        d * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))
        for turns in (beta_fast, beta_slow)
    )
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d - 1)
    divided = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
    return plain * (1 - divided + divided / rope["factor"])


def llama3_frequencies(config):
    rope, plain = config["rope_parameters"], plain_frequencies(config)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)  # in the original length
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / rope["factor"])


def vllm_reads(config, max_model_len=None):
    """RoPE and length in vLLM 0.32; it chooses the factors of longrope by the length it is set up for."""
    rope, plain = config["rope_parameters"], plain_frequencies(config)
    longest, factor, kind = config["max_position_embeddings"], rope["factor"], rope["rope_type"]
    original = rope.get("original_max_position_embeddings")
    others = ("n_positions", "max_seq_len", "seq_length", "max_sequence_length", "max_seq_length", "seq_len")
    max_length = min([longest, *(config[name] for name in others if name in config)])
    max_length = config.get("model_max_length", max_length)
    if kind == "linear":
        return Reading(plain / factor, 1.0, max_length * factor, longest * factor)
    if kind == "dynamic":  # NTK of the length `max_position_embeddings`, which is the original one too
        return Reading(plain, 1.0, max_length * factor, longest)
    if kind == "llama3":
        return Reading(llama3_frequencies(config), 1.0, max_length, longest)
    if kind == "yarn":
        given = {name: rope[name] for name in ("beta_fast", "beta_slow", "truncate") if name in rope}
        attention_factor = rope.get("attention_factor", 0.1 * math.log(factor) + 1)
        return Reading(yarn_frequencies(config, **given), attention_factor, max_length, original * factor)
    assert kind == "longrope"
    which = "long" if (max_model_len or max_length) > original else "short"
    scale = rope.get(f"{which}_mscale", math.sqrt(1 + math.log(longest / original) / math.log(original)))
    return Reading(plain / rope[f"{which}_factor"], scale, max_length, longest if which == "long" else original)


def llama_cpp_reads(config):
    """RoPE in llama.cpp from the GGUF file that its convert_hf_to_gguf.py writes (build 11434)."""
    rope, plain = config["rope_parameters"], plain_frequencies(config)
    kind, longest = rope["rope_type"], config["max_position_embeddings"]
    if kind == "linear":
        return Reading(plain / rope["factor"], 1.0, longest)
    if kind == "yarn":  # the file has the options, but only some architectures read them
        return Reading(yarn_frequencies(config), 0.1 * math.log(rope["factor"]) + 1, longest)
    if kind == "llama3" and config["architectures"][0] in ("LlamaForCausalLM", "MistralForCausalLM"):
        return Reading(llama3_frequencies(config), 1.0, longest)
    return Reading(plain, 1.0, longest)  # factors of longrope are not written for these architectures


def config_of(folder):
    return json.loads((folder / "config.json").read_text("utf-8"))


def extended_length(name):
    return int(LENGTH * CHECKPOINTS[name][2])


def largest_difference(reading, folder, length):
    """Between the rotations of an engine and of transformers."""
    return abs(reading.rotation(length) - transformers_rotation(folder, length)).max()


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "dynamic"])
def test_vllm_reads_the_extended_length_as_transformers_does(name, folders):
    length, config = extended_length(name), config_of(folders / name)
    reading = vllm_reads(config)
    assert largest_difference(reading, folders / name, length) < 1e-5
    assert int(reading.max_length) == length
    assert reading.table >= length
    assert config["max_position_embeddings"] == length  # which lm-eval truncates to


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if "longrope" in name or name == "export-clex"])
def test_vllm_reads_the_original_length_alike_where_it_is_set_up_for_it(name, folders):
    reading = vllm_reads(config_of(folders / name), max_model_len=LENGTH)
    assert largest_difference(reading, folders / name, LENGTH) < 1e-5


def test_vllm_reads_dynamic_as_plain_rope(folders):
    reading = vllm_reads(config_of(folders / "dynamic"))
    assert largest_difference(reading, folders / "dynamic", LENGTH) < 1e-5
    assert largest_difference(reading, folders / "dynamic", extended_length("dynamic")) > 0.1
    assert reading.table < reading.max_length


LLAMA_CPP_READS = ("linear", "linear-2.3", "linear-qwen3", "longqlora", "yarn", "llama3")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_llama_cpp_reads_what_the_documentation_says(name, folders):
    length, config = extended_length(name), config_of(folders / name)
    difference = largest_difference(llama_cpp_reads(config), folders / name, length)
    assert difference < 1e-5 if name in LLAMA_CPP_READS else difference > 0.1


# vLLM itself


@pytest.fixture(scope="module")
def vllm():
    return pytest.importorskip("vllm")


def vllm_rotation(vllm, folder, length, max_model_len=None):
    """cos + i sin by vLLM's own RoPE, times its attention factor, [T, d/2]; and its maximum length of a text."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.layers import rotary_embedding

    rotary_embedding._ROPE_DICT.clear()  # its keys do not contain max_model_len
    model = vllm.config.ModelConfig(model=str(folder), dtype="float32", max_model_len=max_model_len)
    config, d = model.hf_text_config, model.get_head_size()
    eager = torch.compiler.set_stance("force_eager")  # compiling takes a minute for each
    with eager, set_current_vllm_config(vllm.config.VllmConfig(model_config=model)):
        rope = rotary_embedding.get_rope(d, config.max_position_embeddings, True, config.rope_parameters, torch.float32)
        unit = torch.zeros(length, d)
        unit[:, : d // 2] = 1  # is rotated to cos in this half and sin in the other
        rotate = getattr(rope, "forward_native", rope.forward)
        query, _ = rotate(torch.arange(length), unit.clone(), unit.clone())
    return torch.complex(query[:, : d // 2], query[:, d // 2 :]).numpy(), model.max_model_len


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "dynamic"])
def test_the_code_of_vllm_rotates_as_transformers_does(name, folders, vllm):
    length = extended_length(name)
    rotation, max_length = vllm_rotation(vllm, folders / name, length)
    assert abs(rotation - transformers_rotation(folders / name, length)).max() < 1e-5
    assert max_length == length


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if "longrope" in name or name == "export-clex"])
def test_the_code_of_vllm_takes_short_factors_where_it_is_set_up_for_the_original_length(name, folders, vllm):
    rotation, _ = vllm_rotation(vllm, folders / name, LENGTH, max_model_len=LENGTH)
    assert abs(rotation - transformers_rotation(folders / name, LENGTH)).max() < 1e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_formulas_above_are_those_of_vllm(name, folders, vllm):
    length = min(extended_length(name), config_of(folders / name)["max_position_embeddings"])
    rotation, max_length = vllm_rotation(vllm, folders / name, length)
    reading = vllm_reads(config_of(folders / name))
    assert abs(rotation - reading.rotation(length)).max() < 1e-5
    assert max_length == int(reading.max_length)
