"""How each setting of a checkpoint is read, and what relative paths start from."""

from __future__ import annotations

from dataclasses import fields

import pytest

from longshort.errors import UserError
from longshort.settings import Checkpoint
from longshort.sweep.manifest.fields import FIELDS, own_tasks
from tests.sweep.manifests import assert_told, entries, make_folder

OWN = {"longshort_perplexity", "longshort_misalignment", "longshort_longbench_e"}


def test_every_field_of_a_checkpoint_can_be_given():
    names = {field.name for field in fields(Checkpoint)}
    assert names - {"pretrained", "revision", "line", "label"} == set(FIELDS)


def test_lengths_as_text(tmp_path):
    (checkpoint,) = entries(tmp_path, "{pretrained: owner/name, lengths: '64, 16'}")
    assert checkpoint.lengths == (16, 64)


def test_where_lengths_are_wrong_is_told_once(tmp_path):
    with pytest.raises(UserError) as error:
        entries(tmp_path, "{pretrained: owner/name, lengths: {a: 1}}")
    where = f"{tmp_path / 'manifest.yaml'}, line 2, checkpoints[0].lengths: "
    assert str(error.value) == where + "this has to be text."


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
    assert set(one.tasks) == OWN
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


def test_a_path_to_nothing_is_left_to_the_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = entries(tmp_path, "pretrained: ./nowhere", "pretrained: ../nowhere", "pretrained: ~/nowhere")
    expected = [tmp_path / "nowhere", tmp_path.parent / "nowhere", tmp_path / "home" / "nowhere"]
    assert [checkpoint.pretrained for checkpoint in found] == [str(path) for path in expected]


def test_a_hub_name_stays_one(tmp_path):
    (checkpoint,) = entries(tmp_path, "pretrained: owner/name")
    assert checkpoint.pretrained == "owner/name"


# ---- mistakes

AT = "{pretrained: a/b, "
MISTAKES = {
    f"{AT}lengths: [many]}}": "checkpoints[0].lengths[0]: 'many' is not a whole number of at least 8.",
    f"{AT}lengths: many}}": "checkpoints[0].lengths: 'many' is not a whole number of at least 8.",
    f"{AT}lengths: [4]}}": "checkpoints[0].lengths[0]: '4' is not a whole number of at least 8.",
    f"{AT}lengths: []}}": "checkpoints[0].lengths: there is no length.",
    f"{AT}lengths: {{a: 1}}}}": "checkpoints[0].lengths: this has to be text.",
    f"{AT}lenghts: [64]}}": "checkpoints[0].lenghts: there is no such field; did you mean 'lengths'?",
    f"{AT}xyzzy: 1}}": "checkpoints[0].xyzzy: there is no such field; known: pretrained",
    f"{AT}batch_size: big}}": "checkpoints[0].batch_size: 'big' is not a whole number of at least 1.",
    f"{AT}tasks: []}}": "checkpoints[0].tasks: there is no task.",
    f"{AT}tasks: 'longshort_x*'}}": "tasks: 'longshort_x*' matches none of longshort's tasks: longshort_",
    f"{AT}resources: {{gpu: 1}}}}": "checkpoints[0].resources.gpu: there is no such field; did you mean 'gpus'?",
    f"{AT}resources: {{cpus: 0}}}}": "checkpoints[0].resources.cpus: '0' is not a whole number of at least 1.",
    f"{AT}resources: {{memory: lots}}}}": "checkpoints[0].resources.memory: 'lots' is no amount of memory.",
    f"{AT}resources: {{memory: 24GiB}}}}": "checkpoints[0].resources.memory: '24GiB' is no amount of memory.",
    f"{AT}resources: {{memory: 1.2.3}}}}": "checkpoints[0].resources.memory: '1.2.3' is no amount of memory.",
    f"{AT}resources: {{memory: {'9' * 400}}}}}": "is no amount of memory.",
    f"{AT}resources: 2}}": "checkpoints[0].resources: this value has to be a mapping",
    f"{AT}model_args: {{dtype: float32}}}}": "checkpoints[0].model_args.dtype: give dtype as a field of its own",
    f"{AT}model_args: {{pretrained: x}}}}": "checkpoints[0].model_args.pretrained: give pretrained as a field",
    f"{AT}model_args: {{revision: x}}}}": "checkpoints[0].model_args.revision: give revision as a field",
    f"{AT}model_args: {{trust_remote_code: true}}}}": "give trust_remote_code as a field of its own",
    f"{AT}model_args: {{lengths: [64]}}}}": "checkpoints[0].model_args.lengths: give lengths as a field of its own",
    f"{AT}model_args: {{day: 2020-01-01}}}}": "checkpoints[0].model_args.day: this is no number, text",
}


@pytest.mark.parametrize("entry", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_a_setting_is_told_with_its_line_and_field(tmp_path, entry):
    assert_told(tmp_path, entry, MISTAKES[entry])
