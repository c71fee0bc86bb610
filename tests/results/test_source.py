"""Results files are found by what is in them, and what looks like one but cannot be used is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from longshort.errors import UserError
from longshort.results import read
from tests.errors import assert_error, assert_one, user_error
from tests.results.files import results_json, save

OLD = {
    "results": {"some_task": {"acc": 0.25, "acc_stderr": 0.02}},
    "versions": {"some_task": 0},
    "config": {"model": "hf-causal", "model_args": "pretrained=my/run", "limit": None},
}
OTHER_TOOL = {"config_general": {}, "results": {"all": {"acc": 0.25}}, "versions": {}}


@pytest.mark.parametrize(
    "name",
    ["results.json", "results_1.json", "NAME_2026-01-01T00-00-00.000000.json", "my.json", "deep/down/x.json"],
)
def test_a_results_file_is_found_whatever_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    save(file.parent, results_json(), file.name)
    reading = read(tmp_path)
    assert list(reading.files) == [name]
    assert not reading.notes


def test_the_form_of_early_0_4_versions(tmp_path: Path) -> None:
    early = {
        "results": {"longshort_perplexity": {"ppl@64,none": 2.0, "alias": "x"}},
        "configs": {"longshort_perplexity": {"metadata": {"corpus": "builtin"}}},
        "versions": {},
        "n-shot": {},
        "config": {"model": "hf", "model_args": "pretrained=my/run,dtype=auto", "batch_size": "1"},
        "git_hash": "abc",
    }
    save(tmp_path, early, "given-name.json")
    arguments = {"pretrained": "my/run"}
    metrics = {"ppl@64,none": 3.0}
    save(tmp_path, results_json(metrics=metrics, metadata={"corpus": "builtin"}, model_args=arguments), "later.json")
    assert read(tmp_path).table["value"].tolist() == [3.0]  # one without a date is the older one


@pytest.mark.parametrize(("data", "fact"), [(OLD, "0.3"), (OTHER_TOOL, "0.4")])
@pytest.mark.parametrize("name", ["results.json", "nous.json"])
def test_another_format_is_named(tmp_path: Path, data: object, fact: str, name: str) -> None:
    save(tmp_path, results_json())
    save(tmp_path / "old", json.dumps(data), name)
    reading = read(tmp_path, every_task=True)
    assert len(reading.files) == 1
    assert len(reading.notes) == 1
    assert_one(reading.notes, f"old/{name}", fact, "acc")
    with user_error("data", f"old/{name}", fact):
        read(tmp_path, strict=True)
    with user_error("data", f"old/{name}", fact):
        read(tmp_path / "old")


def test_json_beside_the_results_is_counted_and_not_blamed(tmp_path: Path) -> None:
    save(tmp_path, results_json())
    for name in ("config.json", "tokenizer_config.json", "model.safetensors.index.json", "all_results.json"):
        save(tmp_path / "checkpoint", '{"vocab": {"results": 17}}', name)
    save(tmp_path / "checkpoint", '{"results": {"a": 1}}', "benchmark.json")
    save(tmp_path / "checkpoint", "{", "half.json")
    save(tmp_path / ".hidden", "{", "results_1.json")
    save(tmp_path, "{", ".results_1.json")
    save(tmp_path, results_json("replaced"), "outdated_1.json")
    reading = read(tmp_path, strict=True)
    assert set(reading.table["checkpoint"]) == {"org/model-1b"}
    (note,) = reading.notes
    assert_one([note], 6, "config.json")


@pytest.mark.parametrize("name", ["results.json", "NAME_2026-01-01T00-00-00.json"])
def test_half_a_results_file_is_named(tmp_path: Path, name: str) -> None:
    save(tmp_path, results_json())
    save(tmp_path / "half", json.dumps(results_json())[:200], name)
    assert_one(read(tmp_path).notes, f"half/{name}")


def test_a_folder_of_other_json_alone(tmp_path: Path) -> None:
    save(tmp_path, "{}", "config.json")
    with user_error("not_found", 0, 1, "config.json"):
        read(tmp_path)


def test_a_file_that_is_given_has_to_be_one(tmp_path: Path) -> None:
    file = save(tmp_path, "{}", "config.json")
    for given in (file, [file]):
        with user_error("data", str(file)):
            read(given)


def test_a_record_of_a_sweep_is_not_results_and_there_is_one_remedy(tmp_path: Path) -> None:
    file = save(tmp_path, '{"event": "plan"}\n{"event": "ended"}\n', "status.jsonl")
    with pytest.raises(UserError) as caught:
        read(file)
    assert_error(caught.value, "data", str(file))
    assert "again" not in caught.value.message
    assert "longshort eval" not in caught.value.message
