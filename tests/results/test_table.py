import errno
import hashlib
import json
import logging
import os
import subprocess
import sys

import pandas as pd
import pytest

from longshort.errors import UserError
from longshort.results import COLUMNS, read, read_json, read_results, remove_left_over, write_atomically
from tests.errors import assert_facts, assert_one, contains, user_error
from tests.results.files import results_json, save


def test_the_tidy_table_of_one_file(tmp_path):
    metadata = {
        "family": "model",
        "params": 7,
        "train_tokens": 3e11,
        "train_length": 4096,
        "scored": {"documents": {"ppl@4096": 3}},
    }
    save(tmp_path / "org__model-1b", results_json(metadata=metadata))
    table = read_results(tmp_path)
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    ppl, tail = table.to_dict("records")
    assert ppl == {
        "checkpoint": "org/model-1b",
        "revision": "main",
        "family": "model",
        "params": 7,
        "train_tokens": 300_000_000_000,
        "train_length": 4096,
        "task": "longshort_perplexity",
        "corpus": "pg19",
        "metric": "ppl",
        "length": 4096,
        "value": 7.5,
        "stderr": 0.25,
        "n": 3,
    }
    assert (tail["metric"], tail["length"], tail["n"]) == ("ppl_tail", 8192, 4)  # n of the whole task
    assert pd.isna(tail["stderr"])


def test_what_the_metadata_leaves_open_comes_from_lm_eval_or_is_missing(tmp_path):
    save(tmp_path, results_json("checkpoints/run-3/"))
    row = read_results(tmp_path).iloc[0]
    assert (row["family"], row["params"]) == ("run-3", 1_000_000)
    assert pd.isna(row["train_tokens"])
    assert pd.isna(row["train_length"])
    save(tmp_path, results_json(model_num_parameters=-1))
    assert read_results(tmp_path)["params"].isna().all()


def test_folders_that_only_share_a_name_are_one_family_but_not_silently(tmp_path, caplog):
    for index, name in enumerate(("a/step50", "b/step50", "c/step50/", "./a/step50", "d/alone")):
        save(tmp_path / str(index), results_json(name, metadata={"family": "c"} if name.startswith("c") else {}))
    assert read_results(tmp_path)["family"].value_counts().to_dict() == {"step50": 4, "c": 2, "alone": 2}
    (note,) = [record.getMessage() for record in caplog.records if "measured more" not in record.getMessage()]
    assert_facts(note, "a/step50", "b/step50", "'step50'", "--family")


def test_the_table_survives_parquet(tmp_path):
    save(tmp_path, results_json())
    table = read_results(tmp_path)
    table.to_parquet(tmp_path / "results.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "results.parquet"), table)


@pytest.mark.parametrize(
    ("name", "metric", "length"),
    [
        ("sce_last@512", "sce_last", 512),
        ("score", "score", None),
        ("score@0-4k", "score@0-4k", 0),
        ("score@8k+", "score@8k+", 8000),
        ("sce_between@512-1024", "sce_between@512-1024", None),
    ],
)
def test_metric_names(tmp_path, name, metric, length):
    save(tmp_path, results_json(metrics={f"{name},none": 1.0, f"{name}_stderr,none": 0.5}))
    (row,) = read_results(tmp_path).to_dict("records")
    assert (row["metric"], row["stderr"]) == (metric, 0.5)
    assert (None if pd.isna(row["length"]) else row["length"]) == length


def test_model_args_as_text_and_adapters_are_checkpoints_of_their_own(tmp_path):
    save(tmp_path, results_json(model_args="pretrained=a/b,revision=step10,dtype=auto"), "results_1.json")
    save(tmp_path, results_json(model_args={"pretrained": "a/b", "peft": "lora-1"}), "results_2.json")
    table = read_results(tmp_path)
    assert set(table["checkpoint"]) == {"a/b", "a/b+lora-1"}
    assert set(table["family"]) == {"b"}


def test_a_model_that_was_passed_as_an_object_goes_by_its_name(tmp_path):
    data = results_json("in-memory")
    data["config"]["model_args"] = None
    save(tmp_path, data)
    assert set(read_results(tmp_path)["checkpoint"]) == {"in-memory"}


def test_a_group_takes_the_metadata_of_its_members(tmp_path):
    data = results_json(task="longshort_a", metadata={"train_length": 64})
    data["results"]["longshort_all"] = {"alias": "all", "score,none": 20.0, "score_stderr,none": "N/A"}
    data["group_subtasks"] = {"longshort_all": ["longshort_a"]}
    save(tmp_path, data)
    table = read_results(tmp_path).set_index("task")
    assert table.loc["longshort_all", ["corpus", "train_length"]].tolist() == ["pg19", 64]
    assert pd.isna(table.loc["longshort_all", "n"])


def test_the_newest_result_wins_whatever_the_order_of_the_files(tmp_path, caplog):
    save(tmp_path / "a", results_json(date=300.0, ppl=3.0))
    save(tmp_path / "b", results_json(date=100.0, ppl=1.0))
    save(tmp_path / "c", results_json(date=200.0, ppl=2.0))
    table = read_results(tmp_path)
    assert table.loc[table["metric"] == "ppl", "value"].tolist() == [3.0]
    assert_one(caplog.messages, 4, 1)


def test_results_that_differ_in_revision_or_corpus_stand_side_by_side(tmp_path, caplog):
    save(tmp_path / "a", results_json())
    save(tmp_path / "b", results_json(model_revision="step10"))
    save(tmp_path / "c", results_json(metadata={"corpus": "builtin"}))
    assert len(read_results(tmp_path)) == 6
    assert not caplog.records


def test_values_that_are_not_finite_are_left_out_and_named(tmp_path, caplog):
    metrics = {"ppl@64,none": float("nan"), "ppl@128,none": "N/A", "ppl@256,none": 2.0}
    save(tmp_path, results_json(metrics=metrics))
    assert read_results(tmp_path)["length"].tolist() == [256]
    assert contains(caplog.text, "ppl@64", "nan", "ppl@128", "N/A")


@pytest.mark.parametrize(
    "content",
    [
        '{"results": {"longsh',
        "",
        "[]",
        '{"results": null}',
        "\udc80",
        '{"results": {"longshort_perplexity": null}}',
        '{"results": {"longshort_perplexity": {"ppl@64,none": 2.0}}, "configs": {}, "config": ["hf"]}',
        '{"results": {"longshort_perplexity": {"ppl@64,none": 1' + "0" * 400 + '}}, "configs": {}}',
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_named_and_the_others_count(tmp_path, caplog, content):
    save(tmp_path / "good", results_json())
    damaged = tmp_path / "results_damaged.json"
    damaged.write_bytes(content.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert len(read_results(tmp_path)) == 2
    assert str(damaged) in caplog.text
    with user_error("data", str(damaged)):
        read_results(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("change", "whole"),
    [
        ({"metadata": {"params": 10**30}}, False),
        ({"metadata": {"lengths": 7, "tail_tokens": 3, "scored": {"documents": {}}}}, False),
        ({"metrics": {"ppl@99999999999999999999,none": 2.0}}, True),
    ],
)
def test_json_that_lm_eval_would_not_write_takes_no_other_file_with_it(tmp_path, caplog, change, whole):
    save(tmp_path / "good", results_json())
    save(tmp_path / "strange", results_json("strange", **change))
    found = set(read_results(tmp_path)["checkpoint"])
    assert found == ({"org/model-1b", "strange"} if whole else {"org/model-1b"})
    assert whole == ("strange" not in caplog.text)


def test_one_damaged_file_among_a_hundred(tmp_path, caplog):
    for index in range(99):
        save(tmp_path / str(index), results_json(f"org/model-{index}"))
    damaged = save(tmp_path / "damaged", json.dumps(results_json())[:200])
    table = read_results(tmp_path)
    assert (table["checkpoint"].nunique(), len(table)) == (99, 198)
    (note,) = [record.getMessage() for record in caplog.records]
    assert str(damaged) in note
    save(tmp_path / "worse", "{}")
    with pytest.raises(UserError, match=r"damaged/results_.* 1 more") as raised:
        read_results(tmp_path, strict=True)
    assert raised.value.kind == "data"
    assert "\n" not in str(raised.value)


def test_other_tasks_if_they_are_asked_for(tmp_path):
    data = results_json()
    data["results"] |= {
        "niah_single_1": {"alias": "x", "4096,none": 0.75, "4096_stderr,none": 0.0, "8192,none": -1, "16384,none": 0.0},
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5},
        "humaneval": {"pass@1,create_test": 0.125, "pass@1_stderr,create_test": 0.05},
        "brier": {"brier_score,none": -1},
    }
    data["configs"]["gsm8k"] = {"metadata": {"version": 3.0, "corpus": "builtin", "train_length": 64}}
    save(tmp_path, data)
    assert set(read_results(tmp_path)["task"]) == {"longshort_perplexity"}
    table = read_results(tmp_path, every_task=True)
    others = table[table["task"] != "longshort_perplexity"]
    assert others["corpus"].isna().all()  # gsm8k reads none, though the run was given one
    ruler = others[others["task"] == "niah_single_1"]
    # 8192 was not run: RULER says so by -1.
    assert ruler[["metric", "length", "value"]].to_numpy().tolist() == [["score", 4096, 0.75], ["score", 16384, 0.0]]
    others = others.drop(ruler.index)
    assert others["length"].isna().all()
    assert others.set_index(["task", "metric"])["value"].to_dict() == {
        ("hellaswag", "acc"): 0.5,
        ("gsm8k", "exact_match,strict-match"): 0.25,
        ("gsm8k", "exact_match,flexible-extract"): 0.5,
        ("humaneval", "pass@1,create_test"): 0.125,
        ("brier", "brier_score"): -1,
    }
    assert others.set_index("metric")["stderr"]["pass@1,create_test"] == 0.05


def test_other_tasks_alone_are_not_enough(tmp_path):
    save(tmp_path, results_json(task="arc_easy"))
    with pytest.raises(UserError, match="longshort_") as raised:
        read_results(tmp_path, every_task=True)
    assert raised.value.kind == "not_found"


def test_one_checkpoint_by_whatever_way_it_was_evaluated(tmp_path):
    save(tmp_path / "a", results_json("./runs/one/", task="longshort_misalignment"))
    vllm = results_json("runs/one", task="longshort-longbench-e-qasper", metrics={"score,none": 30.0})
    del vllm["config"]["model_revision"]  # lm-eval's hf backend alone tells it
    save(tmp_path / "b", vllm)
    table = read_results(tmp_path)
    assert table["task"].nunique() == 2
    assert set(zip(table["checkpoint"], table["revision"], table["family"], strict=True)) == {
        ("runs/one", "main", "one")
    }


def test_what_a_table_was_made_from(tmp_path, caplog):
    origin = {"source": "books", "revision": "abc", "split": "test", "sha256": "1" * 64}
    scored = {"scored": origin | {"documents": {}, "left_out": []}}
    files = {}
    for name, sha in (("a", "1" * 64), ("b", "1" * 64), ("c", "2" * 64)):
        data = results_json(name, metadata={"scored": origin | {"sha256": sha}} if name == "c" else scored)
        data |= {"versions": {"longshort_perplexity": 1.0, "hellaswag": 1.0}, "lm_eval_version": "0.4.13"}
        files[f"{name}/results_1.json"] = save(tmp_path / name, data, "results_1.json")
    save(tmp_path / "d", "{", "results_1.json")
    save(tmp_path / "e", results_json(task="arc_easy"), "results_1.json")
    data = json.loads((tmp_path / "a" / "results_1.json").read_text())
    data["configs"]["longshort_perplexity"]["metadata"] |= {"lengths": [64, 256], "tail_tokens": 32}
    files["f/results_1.json"] = save(tmp_path / "f", data | {"date": 1.0}, "results_1.json")
    reading = read(tmp_path)
    assert reading.files == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    task = {"task": "longshort_perplexity"}
    targets = {"fixed_targets": "the last 32 of 257 tokens"}
    assert reading.corpora == {
        "pg19": [task | origin, task | origin | {"sha256": "2" * 64}, task | origin | targets],
    }
    assert reading.versions == {"lm_eval_version": ["0.4.13"], "longshort_perplexity": ["1.0"]}
    note, again = reading.notes
    assert "d/results_1.json" in note
    assert "measured more than once" in again
    assert not caplog.records
    pd.testing.assert_frame_equal(reading.table, read_results(tmp_path))


def test_a_folder_or_files_or_one_file(tmp_path):
    one = save(tmp_path / "x" / "y", results_json("a"))
    two = save(tmp_path, results_json("b"), "mine.json")
    assert set(read_results(tmp_path)["checkpoint"]) == {"a", "b"}
    assert set(read_results(two)["checkpoint"]) == {"b"}
    assert set(read_results([one, two])["checkpoint"]) == {"a", "b"}


def test_nothing_to_read(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=str(folder)) as raised:
            read_results(folder)
        assert raised.value.kind == "not_found"
    save(tmp_path, results_json(task="arc_easy"))
    save(tmp_path, "{", "results_damaged.json")
    with user_error("data", 2, 1, str(tmp_path / "results_damaged.json")):
        read_results(tmp_path)
    file = save(tmp_path / "nan", results_json(metrics={"ppl@4096,none": float("nan")}))
    with user_error("not_found", 0, "org/model-1b", "longshort_perplexity", "ppl@4096", "nan"):
        read_results(file)


def test_what_a_killed_write_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *paths: os._exit(9))
    if os.fork() == 0:  # killed before its file has its name
        write_atomically(tmp_path / "a.json", "{}")
    assert os.wait()[1] >> 8 == 9
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".mine.tmp", ".deadbeef.tmp", f"{'0' * 32}.tmp", "a.json")]
    for other in others:
        other.touch()
    remove_left_over(tmp_path)
    assert not left.exists()
    assert sorted(tmp_path.iterdir()) == sorted(others)
    remove_left_over(tmp_path / "nowhere")


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode()
    write_atomically(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file.txt"]
    write_atomically(path, json.dumps(["\udcff", "é"], ensure_ascii=False))  # as a name that is no UTF-8 is read
    assert json.loads(path.read_text("utf-8")) == ["\udcff", "é"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with user_error("unwritable", str(path), os.strerror(number)):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"below\.txt") as raised:
        write_atomically(tmp_path / "file" / "below.txt", "text")
    assert raised.value.kind == "unwritable"


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "line|column"),
        (b'{"a": 1,\n "b": }', "line 2, column 7"),
        (b'{"a": 1} {', "column 10"),
        (b'{"a": "\xff"}', "byte 7"),
        (b"[1]", "list"),
        (b'"text"', "str"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300"),
        (b'{"a": "\\ud800"}', "surrogates"),
    ],
)
def test_a_file_that_is_no_json_object(tmp_path, content, fact):
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=fact) as raised:
        read_json(path, "Do this.")
    assert raised.value.kind == "data"
    assert_facts(raised.value.message, str(path), "Do this.")


def test_a_json_file_that_cannot_be_read(tmp_path):
    path = tmp_path / "some.json"
    with pytest.raises(UserError, match=r"some\.json") as raised:
        read_json(path)
    assert raised.value.kind == "not_found"
    path.mkdir()
    with pytest.raises(UserError, match=r"some\.json") as raised:
        read_json(path)
    assert raised.value.kind == "data"


def test_json_with_a_whole_surrogate_pair(tmp_path):
    (tmp_path / "some.json").write_text('{"a": "\\ud83d\\ude42", "b": NaN}')
    assert read_json(tmp_path / "some.json")["a"] == "🙂"


def test_reading_and_writing_need_no_torch():
    code = "import sys, longshort.results; print({'torch', 'lm_eval', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_family_may_be_called_none(tmp_path):
    """As models without position encoding are; lm-eval's arguments use the same text for a missing value."""
    save(tmp_path, results_json(metadata={"corpus": "pg19", "lengths": [4096], "family": "none"}))
    assert set(read_results(tmp_path)["family"]) == {"none"}
