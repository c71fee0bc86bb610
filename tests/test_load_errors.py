"""Failure category and message for checkpoints that cannot be loaded, by what libraries really raise."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub import errors

from longshort.errors import UserError
from longshort.load_errors import kind_of, load_error, why_not_loaded
from longshort.testing import save_checkpoint


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

    def refuse(path: Path, *arguments: Any) -> Any:
        if path == weights:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    error = load_error(checkpoint, FileNotFoundError("No such file"))  # as safetensors says
    assert error.kind == "broken"
    assert str(weights) in error.message


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
