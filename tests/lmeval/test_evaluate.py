"""Loading and evaluating one checkpoint: which failure category each cause has."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from longshort.errors import UserError
from longshort.lmeval import evaluate
from longshort.lmeval.evaluate import evaluate_checkpoint, load_checkpoint, prepare_tasks, problems


def refused(folder: str | Path, **arguments: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_checkpoint({"pretrained": str(folder), **arguments}, device="cpu")
    return caught.value


def test_a_path_that_does_not_exist(corpus: Path, tmp_path: Path) -> None:
    for what in ("pretrained", "peft"):
        model_args = {"pretrained": "owner/model", what: str(tmp_path / "nowhere")}
        with pytest.raises(UserError, match=str(tmp_path / "nowhere")) as caught:
            evaluate_checkpoint(model_args, metadata={"corpus": str(corpus)})
        assert caught.value.kind == "not_found"


def test_damaged_and_missing_weights_are_broken(llama: Path, tmp_path: Path) -> None:
    for name in ("cut", "lacking"):
        shutil.copytree(llama, tmp_path / name)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    error = refused(tmp_path / "cut")
    assert error.kind == "broken"
    assert str(tmp_path / "cut") in error.message
    weights = tmp_path / "lacking" / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if name != "lm_head.weight"}
    save_file(kept, weights, metadata={"format": "pt"})
    error = refused(tmp_path / "lacking")
    assert error.kind == "broken"
    assert "lm_head.weight" in error.message


def test_offline_a_hub_model_is_a_matter_of_the_hub() -> None:
    assert refused("owner/model").kind == "hub"


def test_a_checkpoint_that_does_not_fit(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(HFLM, "create_from_arg_obj", scarce)
    assert refused(llama).kind == "out_of_memory"


def test_an_unknown_task() -> None:
    with pytest.raises(UserError, match=r"'longshort_magic'.*longshort_perplexity") as caught:
        prepare_tasks(["longshort_magic"], {})
    assert (caught.value.kind, caught.value.field) == ("setting", "tasks")


def test_the_recorded_batch_size_is_automatic_only_where_documents_are_read(
    llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(**arguments: object) -> None:
        seen.append(arguments["batch_size"])

    monkeypatch.setattr(evaluate, "simple_evaluate", stop)
    lm = load_checkpoint({"pretrained": str(llama)}, device="cpu")
    documents = prepare_tasks(["longshort_perplexity"], {"corpus": str(corpus)})
    others = evaluate.Prepared(documents.manager, [object()])
    for prepared, given in ((documents, None), (others, None), (documents, 2), (others, "auto")):
        evaluate.evaluate_loaded(lm, {}, prepared, batch_size=given)
    assert seen == ["auto", 1, 2, "auto"]


def test_a_folder_that_cannot_be_written(llama: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=str(tmp_path / "file")) as caught:
        evaluate_checkpoint({"pretrained": str(llama)}, metadata={"corpus": str(corpus)}, output=tmp_path / "file")
    assert caught.value.kind == "unwritable"


def test_problems_are_tasks_without_values_and_what_tasks_report() -> None:
    results = {"results": {"a": {"alias": "a"}, "b": {"acc,none": 1.0}}, "problems": ["rows of b were skipped"]}
    empty, reported = problems(results)
    assert "a" in empty.split()
    assert reported == "rows of b were skipped"
    assert problems({"results": {"b": {"acc,none": 1.0}}}) == []


def test_every_member_of_a_group_reports_once() -> None:
    class Reporter:
        def __init__(self, name: str, problems: list[str]) -> None:
            self.task_name, self.problems = name, problems

    alone = Reporter("alone", ["one"])
    assert list(evaluate._problems_of_tasks([alone, "a tag", object()])) == ["one"]
