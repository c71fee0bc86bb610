"""Models of several GPUs, and weights in main memory: what reaches lm-eval's backend and accelerate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import psutil
import pytest
import torch
from lm_eval.models import huggingface
from lm_eval.models.huggingface import HFLM

from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.run.worker import evaluate
from longshort.sweep.store.folder import Folder
from longshort.sweep.store.plan import make_plan
from longshort.testing import save_checkpoint

GIB = 2**30


class Reached(Exception):
    """The backend was to be made."""


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every HFLM that was to be made."""
    calls: list[dict[str, Any]] = []

    def note(self: HFLM, **arguments: Any) -> None:
        calls.append(arguments)
        raise Reached

    monkeypatch.setattr(HFLM, "__init__", note)
    return calls


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 and 24 GiB, as torch tells it, and 100 GiB of main memory."""
    memory = {0: (70 * GIB, 80 * GIB), 1: (20 * GIB, 24 * GIB)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=0: memory[index])
    free = {index: amounts[0] for index, amounts in memory.items()} | {"cpu": 100 * GIB}
    monkeypatch.setattr(huggingface, "get_max_memory", lambda: dict(free))


def run(tmp_path: Path, entry: str, memory: str = "usual") -> list[dict[str, Any]]:
    """Plan a manifest of one entry and hand its job to a worker's code; return what that told."""
    save_checkpoint(tmp_path / "model")
    manifest = tmp_path / "m.yaml"
    manifest.write_text(f"checkpoints: [{{pretrained: ./model, corpus: builtin, {entry}}}]")
    (item,) = make_plan(load_manifest(str(manifest)), Folder(tmp_path / "out"))
    told: list[dict[str, Any]] = []
    evaluate(item.job(memory), lambda event, **values: told.append({"event": event} | values))
    return told


def test_parallelize_reaches_the_backend(tmp_path: Path, reached: list[dict[str, Any]], two_gpus: None) -> None:
    run(tmp_path, "dtype: bfloat16, batch_size: 4, resources: {gpus: 2}, model_args: {parallelize: true}")
    (arguments,) = reached
    assert arguments["parallelize"] is True
    assert arguments["pretrained"] == str(tmp_path / "model")
    assert arguments["dtype"] == "bfloat16"
    assert arguments["batch_size"] == 4
    assert "max_memory_per_gpu" not in arguments
    # lm-eval lays the weights over all GPUs that the engine has left visible
    spread = HFLM._get_accelerate_args(SimpleNamespace(), parallelize=arguments["parallelize"], gpus=2)
    assert spread["device_map"] == "auto"
    assert spread["max_memory"] == {0: 70 * GIB, 1: 20 * GIB}


def test_without_it_a_model_stays_on_one_device(tmp_path: Path, reached: list[dict[str, Any]]) -> None:
    run(tmp_path, "dtype: float32")
    assert "parallelize" not in reached[0]


def test_offload_leaves_half_of_the_smallest_gpu_to_activations(
    tmp_path: Path, reached: list[dict[str, Any]], two_gpus: None
) -> None:
    run(tmp_path, "batch_size: 4, cpu_offload: true", memory="offload")
    (arguments,) = reached
    assert arguments["parallelize"] is True
    assert arguments["max_memory_per_gpu"] == 12 * GIB
    assert arguments["batch_size"] == 1
    available = psutil.virtual_memory().available
    assert arguments["max_cpu_memory"] == pytest.approx(available, rel=0.3)
    memory = {0: 10**7, "cpu": arguments["max_cpu_memory"]}
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(1000, 1000) for _ in range(8)))
    assert set(accelerate.infer_auto_device_map(model, max_memory=memory).values()) == {0, "cpu"}


def test_offload_is_nothing_where_there_is_no_gpu(
    tmp_path: Path, reached: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(tmp_path, "cpu_offload: true", memory="offload")
    assert "parallelize" not in reached[0]


def test_less_memory_is_a_document_at_a_time_and_smaller_chunks(
    tmp_path: Path, reached: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from longshort.lmeval import evaluate as lmeval

    divisors: list[int] = []
    monkeypatch.setattr(lmeval, "use_smaller_chunks", divisors.append)
    run(tmp_path, "batch_size: 4")
    run(tmp_path, "batch_size: 4", memory="small")
    assert [call["batch_size"] for call in reached] == [4, 1]
    assert divisors == [1, 8]
