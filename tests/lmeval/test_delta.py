"""Published differences give the checkpoint that they were computed from, or are refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from longshort.lmeval.evaluate import evaluate_checkpoint, load_checkpoint
from longshort.testing import save_checkpoint
from tests.errors import user_error
from tests.lmeval.conftest import run, values
from tests.lmeval.reference import Reference
from tests.lmeval.test_adapters import first_text

TASK = "longshort_perplexity"
SETTINGS: dict[str, Any] = {"lengths": [16, 32], "num_docs": 1}


def save_delta(base: Path, target: Path, folder: Path) -> Path:
    """The difference of two weight files; a shared embedding is in each of them once."""
    shutil.copytree(target, folder)
    first, second = (load_file(place / "model.safetensors") for place in (base, target))
    difference = {name: weight - first[name] for name, weight in second.items()}
    save_file(difference, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_base_and_delta_equal_the_target(tmp_path: Path, corpus: Path, tied: bool) -> None:
    base, target = (save_checkpoint(tmp_path / str(seed), seed=seed, tie_word_embeddings=tied) for seed in (0, 1))
    delta = save_delta(base, target, tmp_path / "delta")
    results = evaluate_checkpoint(
        {"pretrained": str(base), "delta": str(delta)},
        tasks=[TASK],
        metadata=SETTINGS | {"corpus": str(corpus)},
        device="cpu",
    )
    nll, _ = Reference(target).prefix(first_text(corpus), 32)
    assert values(results, TASK)["ppl@32"] == pytest.approx(math.exp(nll), rel=1e-4)
    assert results["config"]["model_args"]["delta"] == str(delta)


def test_stock_lm_eval_adds_to_a_shared_embedding_twice(tmp_path: Path, corpus: Path) -> None:
    base = save_checkpoint(tmp_path / "base", tie_word_embeddings=True)
    with user_error("unsupported", base, field="delta"):
        run(base, [TASK], SETTINGS | {"corpus": str(corpus)}, model_args={"delta": str(base)})


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({"vocab_size": 300}, "lm_head.weight"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"attention_bias": True}, "bias"),
    ],
)
def test_a_delta_of_another_checkpoint_is_refused(
    llama: Path, tmp_path: Path, config: dict[str, Any], weight: str
) -> None:
    delta = save_checkpoint(tmp_path / "delta", **config)
    with user_error("broken", llama, delta, weight, field="delta"):
        load_checkpoint({"pretrained": str(llama), "delta": str(delta)}, device="cpu")


def test_an_adapter_and_a_delta_exclude_each_other(llama: Path) -> None:
    with user_error("setting", field="peft"):
        load_checkpoint({"pretrained": str(llama), "delta": str(llama), "peft": str(llama)}, device="cpu")


def test_a_delta_that_cannot_be_loaded_is_named(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "delta")
    (tmp_path / "delta" / "model.safetensors").write_bytes(b"cut")
    with user_error("broken", tmp_path / "delta"):
        load_checkpoint({"pretrained": str(llama), "delta": str(tmp_path / "delta")}, device="cpu")
