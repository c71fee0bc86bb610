"""Results files that lm-eval 0.4.3 to 0.4.13 wrote, and what is said of those of other versions.

The files in ``lm_eval_versions`` are of the same four documents in each version (``--model dummy``): two tasks of which
the scores are given by the documents and named by the length, as RULER's, the group of them, and a multiple-choice task
with random answers. Only descriptions of the machine and source code of the tasks were cut out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from longshort.results import read
from tests.errors import assert_one, user_error
from tests.results.files import results_json, save

FILES = sorted(Path(__file__).with_name("lm_eval_versions").glob("results_*.json"))
VERSIONS = [file.stem.removeprefix("results_") for file in FILES]
# Documents 1 and 2 are of 4096 tokens, 3 and 4 of 8192. Their scores are 1, 0.5, 0.5, 0.25 and 0.75, 0.5, 0, 0.25.
SCORES = {
    ("needle_a", 4096): (1 + 0.5) / 2,
    ("needle_a", 8192): (0.5 + 0.25) / 2,
    ("needle_b", 4096): (0.75 + 0.5) / 2,
    ("needle_b", 8192): (0 + 0.25) / 2,
    ("needles", 4096): ((1 + 0.5) / 2 + (0.75 + 0.5) / 2) / 2,
    ("needles", 8192): ((0.5 + 0.25) / 2 + (0 + 0.25) / 2) / 2,
}


def test_the_versions() -> None:
    """0.4.6 was never released."""
    assert sorted(VERSIONS) == sorted(f"0.4.{part}" for part in [3, 4, 5, 7, 8, 9, "9.1", "9.2", 10, 11, 12, 13])


@pytest.mark.parametrize("file", FILES, ids=VERSIONS)
def test_every_version_is_read(tmp_path: Path, file: Path) -> None:
    """As lm-eval leaves them, next to longshort's own results of the same checkpoint."""
    folder = tmp_path / "org__model"
    folder.mkdir()
    data = json.loads(file.read_text())
    shutil.copy(file, folder / "results_2026-11-28T20-10-32.529534.json")
    (folder / "samples_choices_2026-11-28T20-10-32.529534.jsonl").write_text('{"doc_id": 0}\n')
    save(tmp_path / "ours", results_json("org/model", model_args={"pretrained": "org/model"}))
    reading = read(tmp_path, every_task=True)
    assert reading.notes == []
    table = reading.table.set_index(["task", "metric"])
    assert set(table["checkpoint"]) == {"org/model"}
    assert set(table["revision"]) == {"main"}
    scores = table.xs("score", level="metric")
    assert dict(zip(zip(scores.index, scores["length"], strict=True), scores["value"], strict=True)) == SCORES
    choices = table.loc["choices", "acc"]
    assert choices["value"] == data["results"]["choices"]["acc,none"]
    assert choices["stderr"] == data["results"]["choices"]["acc_stderr,none"]
    assert choices["n"] == 4
    assert table["length"].isna()["choices", "acc"]


def test_the_recorded_version_decides(tmp_path: Path) -> None:
    save(tmp_path / "a", results_json("a") | {"lm_eval_version": "0.4.13"})
    save(tmp_path / "b", results_json("b") | {"lm_eval_version": "0.4.9.2"})
    assert read(tmp_path).notes == []
    for name in ("c", "d"):
        save(tmp_path / name, results_json(name) | {"lm_eval_version": "0.5.1"})
    save(tmp_path / "e", results_json("e") | {"lm_eval_version": "0.4.14"})
    reading = read(tmp_path)
    assert reading.table["checkpoint"].nunique() == 5
    assert len(reading.notes) == 2
    assert_one(reading.notes, "2 files", "0.5.1", tmp_path / "c")
    assert_one(reading.notes, "1 files", "0.4.14", tmp_path / "e")


def test_before_0_4_3_a_note_says_so(tmp_path: Path) -> None:
    """0.4.0 to 0.4.2 name the model in its arguments alone."""
    old = results_json("org/old")
    del old["model_name"], old["date"]
    old["config"]["model_args"] = "pretrained=org/old,dtype=float32"
    save(tmp_path, old, "results.json")
    reading = read(tmp_path)
    assert reading.table["checkpoint"].unique() == ["org/old"]
    assert_one(reading.notes, "0.4.2", tmp_path / "results.json")


def test_0_3_is_refused(tmp_path: Path) -> None:
    old = {
        "results": {"hellaswag": {"acc": 0.5, "acc_stderr": 0.1}},
        "versions": {"hellaswag": 0},
        "config": {"model": "hf-causal", "model_args": "pretrained=org/model"},
    }
    save(tmp_path / "ours", results_json())
    file = save(tmp_path / "old", old, "results.json")
    assert_one(read(tmp_path, every_task=True).notes, file, "0.3", "acc")
    with user_error("data", file, "0.3", "acc"):
        read(tmp_path, every_task=True, strict=True)
