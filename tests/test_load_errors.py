"""Failure category and message for checkpoints that cannot be loaded, by what libraries really raise."""

from __future__ import annotations

import errno
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import errors

from longshort import load_errors
from longshort.errors import UserError
from longshort.load_errors import kind_of, load_error, why_not_loaded
from longshort.testing import save_checkpoint
from tests.errors import assert_error


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model")


def loading(source: Any, load: Any = transformers.AutoModelForCausalLM) -> UserError:
    with pytest.raises(Exception, match=r".") as raised:
        load.from_pretrained(source)
    error = load_error(source, raised.value)
    assert "\n" not in error.message
    assert len(error.message) < 700
    assert str(source) in error.message
    return error


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_weights_that_are_cut_off(checkpoint: Path, size: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    error = loading(checkpoint)
    assert error.kind == "broken"
    assert "weights" in error.message


def test_weights_of_another_shape(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 40'))
    error = loading(checkpoint)
    assert error.kind == "broken"
    assert "shape" in error.message


def test_a_folder_without_a_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    error = loading(checkpoint)
    assert error.kind == "broken"
    assert "config.json" in error.message


def test_a_tokenizer_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{{")
    error = loading(checkpoint, transformers.AutoTokenizer)
    assert error.kind == "broken"
    assert "line 1 column 2" in error.message


def test_a_name_that_is_neither_here_nor_on_the_hub() -> None:
    error = loading("nowhere")
    assert error.kind == "hub"  # which is not asked here


def test_a_checkpoint_that_brings_code(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert loading(checkpoint).kind == "no_trust_remote_code"


def test_a_file_that_may_not_be_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, opened = checkpoint / "model.safetensors", Path.open

    def refuse(path: Path, *arguments: Any, **more: Any) -> Any:
        if path == weights:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    error = load_error(checkpoint, FileNotFoundError("No such file"))  # as safetensors says
    assert error.kind == "broken"
    assert str(weights) in error.message


# ---- RoPE types


@pytest.mark.parametrize(
    ("rope_type", "remedy"),
    [("su", "longrope"), ("mrope", "default"), ("clex", "trust_remote_code"), ("new", "trust_remote_code")],
)
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_a_rope_type_that_transformers_lacks(checkpoint: Path, rope_type: str, key: str, remedy: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config.pop("rope_parameters")
    config |= {"rope_theta": 1e4, "rope_scaling": {key: rope_type, "factor": 2.0}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    error = loading(checkpoint)
    assert_error(error, "broken", f"'{rope_type}'", "rope_scaling", remedy)
    built = transformers.AutoConfig.from_pretrained(checkpoint)
    with pytest.raises(KeyError) as raised:
        transformers.AutoModelForCausalLM.from_config(built)
    error = load_error(None, raised.value, "model", "llama", built.to_dict())
    assert_error(error, "broken", "'llama'", f"'{rope_type}'", "rope_parameters", remedy)


def test_a_rope_type_of_the_text_model_or_of_one_kind_of_layers(tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "su"}}
    for config in ({"rope_parameters": rope}, {"text_config": {"rope_parameters": rope}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert "'su'" in load_error(tmp_path, KeyError("su")).message
        assert "RoPE" not in load_error(tmp_path, KeyError("default-other")).message
        assert "RoPE" not in load_error(tmp_path, ValueError("su")).message


# ---- tokenizers


def tokenizer_error(checkpoint: Path, content: bytes) -> UserError:
    """What loading says of a Llama checkpoint with a tokenizer.model alone."""
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(content)
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return loading(checkpoint, transformers.AutoTokenizer)


SENTENCEPIECE = bytes([10, 14, 10, 5, *b"<unk>", 21, 0, 0, 0, 0, 24, 2])
BOTH_ARE_MISSING = not (find_spec("sentencepiece") or find_spec("tiktoken"))


@pytest.mark.skipif(not BOTH_ARE_MISSING, reason="sentencepiece or tiktoken is installed")
def test_a_sentencepiece_file_alone_needs_sentencepiece(checkpoint: Path) -> None:
    error = tokenizer_error(checkpoint, SENTENCEPIECE)
    assert_error(error, "dependency", "pip install sentencepiece", "longshort[tokenizers]", "tokenizer.model")
    assert "tiktoken" not in error.message


@pytest.mark.skipif(not BOTH_ARE_MISSING, reason="sentencepiece or tiktoken is installed")
def test_a_file_of_tiktoken_needs_tiktoken(checkpoint: Path) -> None:
    error = tokenizer_error(checkpoint, b"IQ== 0\nIg== 1\n")
    assert_error(error, "dependency", "tiktoken")
    assert "sentencepiece" not in error.message


def test_a_damaged_sentencepiece_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_errors, "_is_installed", lambda name: True)
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(SENTENCEPIECE[:5])
    fallback = ValueError("`tiktoken` is required to read a `tiktoken` file.")
    fallback.__cause__ = ModuleNotFoundError("No module named 'tiktoken'")
    assert_error(load_error(checkpoint, fallback), "broken", "tokenizer.model", "damaged")


def test_other_missing_libraries_are_named_as_they_are(checkpoint: Path) -> None:
    error = load_error(checkpoint, ImportError("This modeling file requires flash_attn."))
    assert_error(error, "dependency", "flash_attn")


def test_what_else_a_library_says_is_kept_on_one_line(checkpoint: Path) -> None:
    assert why_not_loaded(checkpoint, ValueError("a\n  b")) == "a b"
    assert why_not_loaded(None, KeyError()) == "KeyError"
    assert "'llama'" in load_error(None, ValueError("a"), "model", "llama").message


RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=401)  # the client's HTTP library varies
TransportError = type("TransportError", (Exception,), {})  # as the base of its ConnectError is called


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("out of memory at 64 tokens", "out_of_memory"), "out_of_memory"),
        (UserError("in another way", "length"), "length"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (errors.GatedRepoError("no", response=RESPONSE), "gated"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "not_found"),
        (errors.RevisionNotFoundError("no", response=RESPONSE), "not_found"),
        (errors.LocalEntryNotFoundError("no"), "hub"),
        (errors.HfHubHTTPError("no", response=RESPONSE), "hub"),
        (errors.OfflineModeIsEnabled("offline"), "hub"),
        (TransportError("no"), "hub"),
        (ValueError("Please pass the argument `trust_remote_code=True`."), "no_trust_remote_code"),
        (RuntimeError("mat1 and mat2"), None),
        (ZeroDivisionError("division by zero"), None),
    ],
)
def test_categories_of_what_libraries_raise(error: Exception, kind: str | None) -> None:
    assert kind_of(error) == kind
    outer = OSError("cannot load")
    outer.__cause__ = error
    assert kind_of(outer) == kind
    outer.__cause__, outer.__context__ = None, error
    assert kind_of(outer) == kind
    assert load_error("org/model", outer).kind == (kind or "broken")


def test_the_origin_of_a_chain_decides() -> None:
    guess = errors.RepositoryNotFoundError("no", response=RESPONSE)
    guess.__cause__ = errors.OfflineModeIsEnabled("offline")
    assert kind_of(guess) == "hub"
