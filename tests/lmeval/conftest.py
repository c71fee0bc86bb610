"""Checkpoints and a corpus that the tests of this room share, and one way to run tasks in process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from longshort.lmeval.task_folder import tasks_folder
from longshort.testing import save_checkpoint, save_corpus

LENGTHS = [16, 32, 64]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "llama")


@pytest.fixture(scope="session")
def llama_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "llama-bos", bos=True)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoints") / "gpt2", model_type="gpt2")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def run(model: Any, tasks: list[str], metadata: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    """simple_evaluate as the stock command line calls it, without its scan of lm-eval's own tasks."""
    if isinstance(model, Path):
        arguments["model_args"] = {"pretrained": str(model)} | arguments.get("model_args", {})
        arguments.setdefault("device", "cpu")
        model = "hf"
    manager = TaskManager(
        include_path=str(tasks_folder()), include_defaults=False, metadata=arguments.get("model_args", {}) | metadata
    )
    return simple_evaluate(model=model, tasks=tasks, task_manager=manager, **arguments)


def values(results: dict[str, Any], task: str) -> dict[str, float]:
    """Metric to value, without standard errors and names."""
    return {
        key.removesuffix(",none"): value
        for key, value in results["results"][task].items()
        if key.endswith(",none") and "_stderr" not in key
    }
