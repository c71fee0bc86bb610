"""How each setting of a checkpoint is read, and what relative paths start from."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from longshort.settings import Checkpoint
from longshort.sweep.manifest.fields import Place, names_of_fields, own_tasks
from tests.sweep.manifests import assert_error, entries, load, make_folder

OWN = {"longshort_perplexity", "longshort_misalignment", "longshort_longbench_e", "longshort_retrieval"}


def test_every_setting_of_a_checkpoint_can_be_given() -> None:
    names = {field.name for field in fields(Checkpoint)}
    assert names - {"pretrained", "revision", "line", "label"} == set(names_of_fields())


@pytest.mark.parametrize("lengths", ["'64, 16'", "[64, '16']", "[16, 64, 16]", "[1.6e1, '6.4e1']"])
def test_lengths_as_text_and_as_a_list(tmp_path: Path, lengths: str) -> None:
    (checkpoint,) = entries(tmp_path, f"{{pretrained: owner/name, lengths: {lengths}}}")
    assert checkpoint.lengths == (16, 64)


def test_text_is_taken_as_it_is_written(tmp_path: Path) -> None:
    (checkpoint,) = entries(tmp_path, "{pretrained: owner/name, family: 1.10, license: yes, lengths: 0100}")
    assert (checkpoint.family, checkpoint.license, checkpoint.lengths) == ("1.10", "yes", (100,))


@pytest.mark.parametrize(("limit", "expected"), [("2", 2), ("2.0", 2), ("'3'", 3), ("0.5", 0.5)])
def test_a_whole_limit_is_recorded_as_an_integer(tmp_path: Path, limit: str, expected: float) -> None:
    """As in the fingerprints of older sweeps."""
    (checkpoint,) = entries(tmp_path, f"{{pretrained: owner/name, limit: {limit}}}")
    assert checkpoint.limit == expected
    assert type(checkpoint.limit) is type(expected)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [("24GB", 24 * 10**9), ("500 mb", 500 * 10**6), ("1.5TB", 1_500_000_000_000), ("1000", 1000)],
)
def test_amounts_of_memory(tmp_path, memory, expected):
    (checkpoint,) = entries(tmp_path, f"{{pretrained: owner/name, resources: {{memory: {memory}}}}}")
    assert checkpoint.resources.memory == expected


def test_a_glob_of_tasks_matches_own_names_and_others_pass(tmp_path):
    one, other = entries(
        tmp_path, "{pretrained: owner/one, tasks: longshort_*}", "{pretrained: owner/two, tasks: [mmlu, longshort_m*]}"
    )
    assert set(one.tasks) == OWN  # not LongPPL, for want of key_spans
    assert len(one.tasks) == len(OWN)
    assert other.tasks == ("mmlu", "longshort_misalignment")


def test_own_tasks_are_those_of_the_files():
    assert OWN | {"longshort-longbench-e-qasper"} <= set(own_tasks())


# ---- paths


def test_paths_are_relative_to_the_manifest(tmp_path, monkeypatch):
    make_folder(tmp_path / "model")
    make_folder(tmp_path / "adapter")
    (tmp_path / "text.jsonl").write_text("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (checkpoint,) = entries(
        tmp_path, "{pretrained: model, corpus: text.jsonl, longbench_dir: data, model_args: {peft: adapter}}"
    )
    assert checkpoint.pretrained == str(tmp_path / "model")
    assert checkpoint.corpus == str(tmp_path / "text.jsonl")
    assert checkpoint.longbench_dir == str(tmp_path / "data")
    assert checkpoint.model_args == {"peft": str(tmp_path / "adapter")}


def test_globs_and_names_of_corpora(tmp_path):
    (tmp_path / "text-1.jsonl").write_text("")
    glob, pg19 = entries(
        tmp_path, "{pretrained: owner/name, corpus: 'text-*.jsonl'}", "{pretrained: owner/name, corpus: pg19}"
    )
    assert (glob.corpus, pg19.corpus) == (str(tmp_path / "text-*.jsonl"), "pg19")


def test_a_corpus_with_a_column(tmp_path: Path) -> None:
    for name in ("text.jsonl", "a:b.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "hf").mkdir()
    specs = ["text.jsonl:body", "./*.jsonl:body", "a:b.jsonl", "a:b.jsonl:body", "none.jsonl:body", "hf:a/b:::body"]
    found = [Place(tmp_path).corpus(spec) for spec in specs]
    assert found == [str(tmp_path / spec) for spec in specs[:4]] + specs[4:]


def test_a_path_to_nothing_is_left_to_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = entries(tmp_path, "pretrained: ./nowhere", "pretrained: ../nowhere", "pretrained: ~/nowhere")
    expected = [tmp_path / "nowhere", tmp_path.parent / "nowhere", tmp_path / "home" / "nowhere"]
    assert [checkpoint.pretrained for checkpoint in found] == [str(path) for path in expected]


def test_a_hub_name_stays_one(tmp_path):
    (checkpoint,) = entries(tmp_path, "pretrained: owner/name")
    assert checkpoint.pretrained == "owner/name"


# ---- mistakes


@pytest.mark.parametrize(
    ("rest", "field", "facts"),
    [
        ("lengths: [64, many]", "lengths[1]", ("'many'", "at least 8")),
        ("lengths: many", "lengths", ("'many'", "at least 8")),
        ("lengths: [4]", "lengths[0]", ("'4'", "at least 8")),
        ("lengths: [true]", "lengths[0]", ("'true'",)),
        ("lengths: []", "lengths", ("[2048,4096]",)),
        ("lengths: {a: 1}", "lengths", ()),
        ("lenghts: [64]", "lenghts", ("'lenghts'", "'lengths'")),
        ("xyzzy: 1", "xyzzy", ("pretrained", "lengths", "cpu_offload")),
        ("line: 1", "line", ()),
        ("label: x", "label", ()),
        ("batch_size: big", "batch_size", ("'big'", "auto", "at least 1")),
        ("batch_size: 0", "batch_size", ("'0'", "at least 1")),
        ("tasks: []", "tasks", ("at least one",)),
        ("tasks: ','", "tasks", ("at least one",)),
        ("tasks: 'longshort_x*'", "tasks", ("'longshort_x*'", "longshort_perplexity")),
        ("tasks: longshort_perplexiti", "tasks", ("'longshort_perplexiti'", "'longshort_perplexity'")),
        ("resources: {gpu: 1}", "resources.gpu", ("'gpus'",)),
        ("resources: {cpus: 0}", "resources.cpus", ("'0'", "at least 1")),
        ("resources: {gpus: -1}", "resources.gpus", ("'-1'", "at least 0")),
        ("resources: {memory: lots}", "resources.memory", ("'lots'", "24GB")),
        ("resources: {memory: 24GiB}", "resources.memory", ("'24GiB'",)),
        ("resources: {memory: 1.2.3}", "resources.memory", ("'1.2.3'",)),
        (f"resources: {{memory: {'9' * 400}}}", "resources.memory", ("24GB",)),
        ("resources: 2", "resources", ("mapping",)),
        ("model_args: {dtype: float32}", "model_args.dtype", ("dtype",)),
        ("model_args: {pretrained: x}", "model_args.pretrained", ("pretrained",)),
        ("model_args: {revision: x}", "model_args.revision", ("revision",)),
        ("model_args: {trust_remote_code: true}", "model_args.trust_remote_code", ()),
        ("model_args: {lengths: [64]}", "model_args.lengths", ("lengths",)),
        ("model_args: {day: 2020-01-01}", "model_args.day", ()),
        ("task_args: {lengths: [64]}", "task_args", ("'lengths'",)),
        ("task_args: {version: 2}", "task_args", ("'version'",)),
        ("task_args: {day: 2020-01-01}", "task_args", ("JSON",)),
        ("task_args: [64]", "task_args", ()),
        ("task_args: max_seq_lengths=64", "task_args", ("JSON",)),
    ],
)
def test_a_wrong_setting_is_reported_with_its_line_and_field(
    tmp_path: Path, rest: str, field: str, facts: tuple[str, ...]
) -> None:
    assert_error(tmp_path, f"{{pretrained: a/b, {rest}}}", f"checkpoints[0].{field}", *facts)


def test_metadata_of_other_tasks_of_one_checkpoint_replaces_the_default(tmp_path: Path) -> None:
    text = """
defaults: {task_args: {max_seq_lengths: [4096, 8192], num_samples: 5}}
checkpoints:
- pretrained: a/one
- pretrained: a/two
  task_args: {max_seq_lengths: 4k}
"""
    one, two = load(tmp_path, text)
    assert one.task_args == {"max_seq_lengths": [4096, 8192], "num_samples": 5}
    assert two.task_args == {"max_seq_lengths": "4k"}
