"""What a person is told of a checkpoint that cannot be loaded, by what libraries really raise."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import transformers

from longshort.load_errors import AGAIN, why_not_loaded
from longshort.testing import save_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "model")


def told(source: Any, load: Any = transformers.AutoModelForCausalLM) -> str:
    with pytest.raises(Exception, match=r".") as error:
        load.from_pretrained(source)
    line = why_not_loaded(source, error.value)
    assert "\n" not in line
    assert len(line) < 600
    return line


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_weights_that_are_cut_off(checkpoint: Path, size: int) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    line = told(checkpoint)
    assert line.startswith("its weights are damaged or incomplete (")
    assert line.endswith(AGAIN)


def test_weights_of_another_shape(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 40'))
    assert told(checkpoint) == f"its weights have other shapes than its config.json says. {AGAIN}"


def test_a_folder_without_a_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert told(checkpoint) == "it has no config.json. Name a folder that save_pretrained wrote."


def test_a_tokenizer_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text("{{")
    assert told(checkpoint, transformers.AutoTokenizer).startswith("a JSON file in it, of its config or tokenizer, is")


def test_a_name_that_is_neither_here_nor_on_the_hub() -> None:
    line = told("nowhere")
    assert line.startswith("nothing of this name is here, and the hub did not give it (")
    assert line.endswith("Name a folder, or a hub model.")


def test_a_file_that_may_not_be_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, opened = checkpoint / "model.safetensors", Path.open

    def refuse(path: Path, *arguments: Any) -> Any:
        if path == weights:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    line = why_not_loaded(checkpoint, FileNotFoundError("No such file"))  # as safetensors says
    assert line == f"{weights} cannot be read: permission denied. Make it readable."


def test_what_else_a_library_says_is_kept_on_one_line(checkpoint: Path) -> None:
    assert why_not_loaded(checkpoint, ValueError("a\n  b")) == "a b"
    assert why_not_loaded(None, KeyError()) == "KeyError"
