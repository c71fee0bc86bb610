"""Which model arguments make another model, and how it is named."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.results.model_args import identity_args, parse_model_args, short_name, variant_suffix

SAME: list[Any] = [
    {},
    {"device": "cuda:1"},
    {"batch_size": 8, "max_batch_size": 64},
    {"trust_remote_code": True},
    {"parallelize": True, "max_memory_per_gpu": 10, "max_cpu_memory": "10GB", "offload_folder": "x"},
    {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.9, "data_parallel_size": 2, "swap_space": 4},
    {"max_length": 4096, "max_model_len": 4096, "max_gen_toks": 32, "truncation": True},
    {"token": "hf_secret", "cache_dir": "/x", "use_safetensors": True},
    {"load_in_4bit": False, "load_in_8bit": None, "subfolder": "", "gguf_file": None, "dtype": "auto"},
    {"tokenizer": "my/run", "use_fast_tokenizer": True},
    {"revision": "step10", "peft": "lora"},  # each in its own part of the name
    {"base_url": "http://localhost:8000", "tokenizer": "other/one", "num_concurrent": 4},
]
DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"subfolder": "step1000"}, "+subfolder=step1000"),
    ({"gguf_file": "model.Q4_K_M.gguf"}, "+gguf_file=model.Q4_K_M.gguf"),
    ({"load_in_4bit": True}, "+load_in_4bit=True"),
    ({"dtype": "torch.half"}, "+dtype=float16"),
    ({"attn_implementation": "eager"}, "+attn_implementation=eager"),
    ({"tokenizer": "./other/one/"}, "+tokenizer=other/one"),
    ({"tie_word_embeddings": False}, "+tie_word_embeddings=False"),
    ({"rope_scaling": {"factor": 2, "a": [1]}}, '+rope_scaling={"a":[1],"factor":2}'),
    ({"quantization": "awq", "my_own": 0}, "+my_own=0+quantization=awq"),
]


@pytest.mark.parametrize("arguments", SAME)
def test_what_cannot_change_the_model_is_not_in_its_identity(arguments: dict[str, Any]) -> None:
    assert identity_args({"pretrained": "my/run"} | arguments) == {}


@pytest.mark.parametrize(("arguments", "name"), DIFFERENT)
def test_what_can_change_the_model_is_in_its_name(arguments: dict[str, Any], name: str) -> None:
    assert variant_suffix(identity_args({"pretrained": "my/run"} | arguments)) == name


@pytest.mark.parametrize(("arguments", "_"), [*DIFFERENT, *(({"pretrained": "x"} | same, "") for same in SAME)])
def test_recorded_as_text_or_as_json_it_is_the_same(arguments: dict[str, Any], _: str) -> None:
    assert identity_args(parse_model_args(json.dumps(arguments))) == identity_args(arguments)
    if not any(isinstance(value, (dict, list)) for value in arguments.values()):
        text = ",".join(f"{name}={value}" for name, value in arguments.items())
        assert identity_args(parse_model_args(text)) == identity_args(arguments)


@pytest.mark.parametrize("model_args", [None, "", "{", "[1]", {}, ",,", "x"])
def test_model_args_of_any_form(model_args: Any) -> None:
    assert set(parse_model_args(model_args).values()) <= {""}


VALUES = st.recursive(
    st.booleans() | st.integers() | st.text(min_size=1, max_size=80),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(one=st.dictionaries(st.sampled_from(["subfolder", "x"]), VALUES), other=st.dictionaries(st.just("x"), VALUES))
def test_two_identities_never_share_a_name(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = identity_args(one), identity_args(other)
    names = variant_suffix(first), variant_suffix(second)
    assert (names[0] == names[1]) == (first == second)
    assert all("\n" not in name for name in names)


def test_the_short_name_keeps_what_distinguishes() -> None:
    for name in ("a/b", "a/b+lora", "/runs/x/step50"):
        assert short_name(name) == PurePath(name).name
    assert short_name("org/run+subfolder=ckpt/step10") == "run+subfolder=ckpt/step10"
    assert short_name("c/c++/run+dtype=float16+x=a/b") == "run+dtype=float16+x=a/b"
