"""A sweep folder written by version 0.1 is recognized: its results, their keys and its status."""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from longshort.settings import Checkpoint
from longshort.sweep.store import plan
from longshort.sweep.store.folder import Folder, former_slug, key_of, slug
from longshort.sweep.store.plan import make_plan
from longshort.sweep.store.status import states

STUDY = Path(__file__).parents[3] / "results" / "study" / "sweep"
KEYED: dict[str, Any] = {
    "pretrained": "owner/name", "revision": "step10", "identity": "c" * 40, "added": ["sha256:00"],
    "model_args": {"peft": "/adapter", "max_length": 64}, "dtype": "float32", "corpus_identity": "python 3.11.7",
    "longbench": None,
    "settings": {"corpus": "builtin", "lengths": [16, 32], "num_docs": 8, "tail_tokens": None, "seed": 0, "limit": 2},
    "task": "longshort_perplexity", "task_version": 1.0, "versions": {"python": "3.11.7", "torch": "2.13.0"},
}  # fmt: skip


def test_the_inputs_of_recorded_results_are_computed_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = {
        file: json.loads(file.read_text())["longshort_sweep"]["inputs"] for file in STUDY.rglob("results_*.json")
    }
    assert len(recorded) > 20
    versions = next(iter(recorded.values()))["versions"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the recorded identities are used
    monkeypatch.setattr(platform, "python_version", lambda: versions["python"])
    monkeypatch.setattr(plan, "versions", lambda: versions)
    monkeypatch.setattr(plan, "_task_versions", lambda: {i["task"]: i["task_version"] for i in recorded.values()})
    checkpoints = []
    for file, inputs in recorded.items():
        settings = inputs["settings"] | {"lengths": tuple(inputs["settings"]["lengths"])}
        names = ("pretrained", "revision", "model_args", "dtype")
        checkpoint = Checkpoint(**{name: inputs[name] for name in names}, **settings, tasks=(inputs["task"],))
        place = tmp_path / "results" / slug(checkpoint) / inputs["task"]
        place.mkdir(parents=True)
        shutil.copy(file, place)
        checkpoints.append(checkpoint)
    items = make_plan(checkpoints, Folder(tmp_path))
    for item, inputs in zip(items, recorded.values(), strict=True):
        (now,) = item.inputs.values()
        later = now["settings"].keys() - inputs["settings"].keys()  # settings that did not exist then
        assert now | {"settings": {k: v for k, v in now["settings"].items() if k not in later}} == inputs
        assert item.done == [inputs["task"]]
        assert not item.missing


def test_keys_and_folder_names_are_those_of_version_0_1() -> None:
    assert key_of(KEYED) == "8f660b9d8ff6"
    adapted = Checkpoint("owner/name", revision="step10", corpus="builtin", model_args={"peft": "/adapter"})
    assert slug(adapted) == "owner_name_adapter_step10-c6220b25"
    assert slug(Checkpoint("/models/one", corpus="/texts/a.txt")) == "one-98830a42"
    single = slug(Checkpoint("/models/one", corpus="/texts/a.txt", dtype="float32"))
    assert single.startswith("one-")  # tables do not show it either
    assert single != "one-98830a42"
    step = Checkpoint("/models/one", corpus="/texts/a.txt", model_args={"subfolder": "step10"})
    assert slug(step).startswith("one_subfolder_step10-")


def test_results_in_folders_of_version_0_1_are_found_and_moved(tmp_path: Path) -> None:
    """Its folder names left out dtype and model arguments; the results recorded them."""
    folder = Folder(tmp_path)
    plain = Checkpoint(str(tmp_path / "model"), tasks=("longshort_perplexity",), corpus="builtin")
    variants = [replace(plain, dtype=dtype) for dtype in ("float32", "float16")]
    Path(plain.pretrained).mkdir()
    (item,) = make_plan(variants[:1], folder)
    saved = folder.save(variants[0], "longshort_perplexity", item.inputs["longshort_perplexity"], {"results": {}})
    former = tmp_path / "results" / former_slug(plain)
    former.mkdir()
    saved.parent.rename(former / "longshort_perplexity")
    saved.parent.parent.rmdir()

    assert [item.done for item in make_plan(variants, folder)] == [["longshort_perplexity"], []]
    assert former.is_dir(), "a plan alone moves nothing"
    folder.adopt([*variants, plain])
    assert saved.is_file()
    assert not former.exists()
    assert [item.done for item in make_plan([*variants, plain], folder)] == [["longshort_perplexity"], [], []]


def test_a_recorded_status_is_read() -> None:
    found = states(STUDY)
    assert len(found) > 20
    assert {state.state for state in found} == {"done"}
