"""Metadata of other tasks: what reaches them, what the results record, what the tidy table has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from typer.testing import CliRunner

from longshort.cli import app
from longshort.lmeval import evaluate
from longshort.lmeval.evaluate import evaluate_checkpoint, results_of
from longshort.results import read_results

# As RULER: its documents are made for the lengths in the metadata, and its metrics are named by the length alone.
YAML = """
task: copies
dataset_path: ""
output_type: multiple_choice
test_split: test
custom_dataset: !function copies.documents
doc_to_text: "{{text}}"
doc_to_choice: ["a", "b"]
doc_to_target: 0
process_results: !function copies.process_results
metric_list:
  - metric: "64"
    aggregation: !function copies.mean
    higher_is_better: true
  - metric: "128"
    aggregation: !function copies.mean
    higher_is_better: true
metadata:
  version: 1
"""
GROUP = """
group: copying
task: [copies]
aggregate_metric_list:
  - metric: "64"
    weight_by_size: false
metadata:
  version: 1
"""
CODE = """
import datasets

def documents(max_seq_lengths=(64,), seen=None, **metadata):
    rows = [{"text": "x" * length, "length": length} for length in max_seq_lengths for _ in range(2)]
    return {"test": datasets.Dataset.from_list(rows)}

def process_results(doc, results):
    return {"64": -1.0, str(doc["length"]): doc["length"] / 1000}

def mean(values):
    known = [value for value in values if value != -1]
    return sum(known) / len(known) if known else -1
"""
SETTINGS = {"lengths": [16, 32], "num_docs": 2, "train_length": 16}
ASKED = {"max_seq_lengths": [64, 128]}


@pytest.fixture
def with_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own tasks are this one and its group."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, content in {"copies.yaml": YAML, "copying.yaml": GROUP, "copies.py": CODE}.items():
        (folder / name).write_text(content)

    def manager(include_path: str, include_defaults: bool = True, **arguments: Any) -> TaskManager:
        paths = [include_path, str(folder)] if include_defaults else [include_path]
        return TaskManager(include_path=paths, include_defaults=False, **arguments)

    monkeypatch.setattr(evaluate, "TaskManager", manager)


def measured(folder: Path, task: str) -> list[list[Any]]:
    table = read_results(folder, every_task=True)
    return table.loc[table["task"] == task, ["metric", "length", "value"]].to_numpy().tolist()


@pytest.mark.usefixtures("with_copies")
def test_they_reach_other_tasks_alone(llama: Path, corpus: Path, tmp_path: Path) -> None:
    results = evaluate_checkpoint(
        {"pretrained": str(llama)},
        tasks=["longshort_perplexity", "copying"],
        metadata=SETTINGS | {"corpus": str(corpus)},
        task_args=ASKED | {"corpus_of_copies": "x"},
        output=tmp_path / "out",
        device="cpu",
    )
    (file,) = (tmp_path / "out").rglob("results_*.json")
    configs = json.loads(file.read_text())["configs"]
    assert configs["copies"]["metadata"]["max_seq_lengths"] == [64, 128]
    assert configs["copies"]["metadata"]["corpus_of_copies"] == "x"
    assert configs["longshort_perplexity"]["metadata"]["lengths"] == [16, 32]
    assert not {"max_seq_lengths", "corpus_of_copies"} & configs["longshort_perplexity"]["metadata"].keys()
    assert measured(tmp_path / "out", "copies") == [["score", 64, 0.064], ["score", 128, 0.128]]
    # lm-eval reports the group at 64 tokens; 128 is the mean over its only task.
    assert measured(tmp_path / "out", "copying") == [["score", 64, 0.064], ["score", 128, 0.128]]
    assert results["results"]["copying"]["64,none"] == 0.064
    assert "128,none" not in results["results"]["copying"]
    kept = results_of(results, "copying")  # as a sweep saves it
    assert kept["results"].keys() == {"copying", "copies"}
    assert results_of(results, "longshort_perplexity")["results"].keys() == {"longshort_perplexity"}


@pytest.mark.usefixtures("with_copies")
def test_without_them_a_task_has_its_own_default(llama: Path, corpus: Path, tmp_path: Path) -> None:
    evaluate_checkpoint(
        {"pretrained": str(llama)},
        tasks=["longshort_perplexity", "copies"],
        metadata=SETTINGS | {"corpus": str(corpus)},
        output=tmp_path / "out",
        device="cpu",
    )
    assert measured(tmp_path / "out", "copies") == [["score", 64, 0.064]]


@pytest.mark.usefixtures("with_copies")
def test_they_are_an_option_of_the_command_line(llama: Path, corpus: Path, tmp_path: Path) -> None:
    options = ["--lengths", "16,32", "--num-docs", "2", "--train-length", "16", "--corpus", str(corpus)]
    options += ["--tasks", "longshort_perplexity,copies", "--device", "cpu", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["eval", str(llama), *options, "--task-args", json.dumps(ASKED)])
    assert result.exit_code == 0, result.output
    assert measured(tmp_path / "out", "copies") == [["score", 64, 0.064], ["score", 128, 0.128]]
