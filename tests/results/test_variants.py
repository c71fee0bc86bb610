"""Checkpoints that differ in model arguments only are rows of their own, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from longshort.results import read
from tests.errors import assert_one
from tests.results.files import results_json, save

MISALIGNMENT = {"sce@4096,none": 3.0}


def table_of(folder: Path, *runs: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Each checkpoint's one perplexity, and the notes."""
    for index, run in enumerate(runs):
        arguments = {"pretrained": "my/run"} | run.pop("model_args", {})
        data = results_json(date=float(index), model_args=arguments, metrics={"ppl@64,none": float(10 + index)}, **run)
        save(folder / str(index), data)
    reading = read(folder)
    return dict(zip(reading.table["checkpoint"], reading.table["value"], strict=True)), reading.notes


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"subfolder": "step1000"}, {"subfolder": "step2000"}),
        ({"gguf_file": "q4.gguf"}, {"gguf_file": "q8.gguf"}),
        ({"load_in_4bit": True}, {}),
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"dtype": "bfloat16"}, {}),
        ({"attn_implementation": "eager"}, {"attn_implementation": "sdpa"}),
        ({"tokenizer": "my/other"}, {}),
        ({"my_own": 1}, {"my_own": 2}),
        ({"peft": "lora", "load_in_8bit": True}, {"peft": "lora"}),
        ({"peft": "a"}, {"delta": "b"}),
    ],
)
def test_variants_are_rows_of_their_own(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], as_text: bool
) -> None:
    runs: list[Any] = [one, other]
    for index, arguments in enumerate(runs):
        data = results_json(date=float(index), metrics={"ppl@64,none": float(10 + index)})
        arguments = {"pretrained": "my/run"} | arguments
        text = ",".join(f"{name}={value}" for name, value in arguments.items())
        data["config"]["model_args"] = text if as_text else arguments
        save(tmp_path / str(index), data)
    reading = read(tmp_path)
    assert sorted(reading.table["value"]) == [10.0, 11.0]
    assert reading.table["checkpoint"].nunique() == 2
    assert all("my/run" in name for name in reading.table["checkpoint"])
    assert set(reading.table["family"]) == {"run"}
    assert not reading.notes


def test_ten_runs_stay_ten(tmp_path: Path) -> None:
    found, notes = table_of(tmp_path, *({"model_args": {"subfolder": f"step{step}"}} for step in range(10)))
    assert found == {f"my/run+subfolder=step{step}": 10.0 + step for step in range(10)}
    assert not notes


def test_a_name_does_not_depend_on_what_else_is_in_the_folder(tmp_path: Path) -> None:
    one = {"model_args": {"subfolder": "step1", "load_in_4bit": True}}
    assert table_of(tmp_path / "a", one)[0] == {"my/run+load_in_4bit=True+subfolder=step1": 10.0}
    assert table_of(tmp_path / "b", {"model_args": {"dtype": "float32"}})[0] == {"my/run": 10.0}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_args": {"device": "cpu", "batch_size": 4, "trust_remote_code": True, "parallelize": True}}, ()),
        ({"model_args": {"max_length": 100}}, ("max_length",)),
        ({"metadata": {"num_docs": 3, "seed": 1}}, ("num_docs", "seed")),
        ({"limit": 10.0, "gen_kwargs": {"temperature": 1}}, ("limit", "gen_kwargs")),
        ({"model": "vllm"}, ("backend",)),
    ],
)
def test_a_model_that_was_measured_again_is_one_row_and_the_note_says_how(
    tmp_path: Path, change: dict[str, Any], named: tuple[str, ...]
) -> None:
    found, notes = table_of(tmp_path, {}, change)
    assert found == {"my/run": 11.0}
    assert len(notes) == 1
    assert_one(notes, "my/run", *named)


def test_a_dtype_that_is_the_saved_one_is_no_variant(tmp_path: Path) -> None:
    saved = {"model_dtype": "torch.bfloat16"}
    runs: list[dict[str, Any]] = [
        {**saved, "model_args": {"dtype": "auto"}},
        {"model": "vllm"},  # does not record what its dtype is
        {**saved, "model_args": {"dtype": "bfloat16"}},
        {"model_dtype": "torch.float32", "model_args": {"dtype": "float32"}},
    ]
    assert table_of(tmp_path, *runs)[0] == {"my/run": 12.0, "my/run+dtype=float32": 13.0}


def test_variants_with_different_tasks_may_have_been_meant_as_one(tmp_path: Path) -> None:
    save(tmp_path / "a", results_json(model_args={"pretrained": "my/run", "dtype": "float32"}))
    other = {"pretrained": "my/run", "dtype": "bfloat16"}
    save(tmp_path / "b", results_json(task="longshort_misalignment", metrics=MISALIGNMENT, model_args=other))
    reading = read(tmp_path)
    assert set(reading.table["checkpoint"]) == {"my/run+dtype=float32", "my/run+dtype=bfloat16"}
    assert_one(reading.notes, "my/run+dtype=float32", "my/run+dtype=bfloat16")


def test_an_adapter_of_vllm_is_the_same_as_of_hf(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{"model_args": {"peft": "./lora/"}}, {"model_args": {"lora_local_path": "lora"}}]
    assert table_of(tmp_path, *runs)[0] == {"my/run+lora": 11.0}


def test_a_secret_never_reaches_the_table_or_a_note(tmp_path: Path) -> None:
    runs: list[dict[str, Any]] = [{"model_args": {"token": "hf_1"}}, {"model_args": {"auth_token": "hf_2"}}]
    found, notes = table_of(tmp_path, *runs)
    assert "hf_" not in f"{found} {notes}"
