from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.lmeval.settings import settings_from
from longshort.sweep.fields import FIELDS, own_tasks
from longshort.sweep.manifest import Checkpoint, Resources, load_manifest, shipped

OWN = {"longshort_perplexity", "longshort_misalignment", "longshort_longbench_e"}
SHIPPED = {"demo", "paper", "pythia", "small", "long-context"}
RECORD = {
    "base": "meta-llama/Llama-2-7b-hf",
    "config": {"base": "meta-llama/Llama-2-7b-hf", "model_config": None},
    "train_length": 4096,
    "tokens_seen": 52_428_800,
    "needs_remote_code": True,
    "model": {"num_parameters": 6_738_415_616},
}


def load(folder: Path, text: str) -> list[Checkpoint]:
    file = folder / "manifest.yaml"
    file.write_text(text, "utf-8")
    return load_manifest(str(file))


def entries(folder: Path, *lines: str) -> list[Checkpoint]:
    return load(folder, "checkpoints:\n" + "".join(f"  - {line}\n" for line in lines))


def make_folder(folder: Path, record: dict[str, Any] | str | None = None, config: bool = True) -> Path:
    folder.mkdir(parents=True)
    if config:
        (folder / "config.json").write_text("{}")
    if record is not None:
        (folder / "longshort.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return folder


# ---- what a manifest says


def test_an_entry_alone_has_the_defaults(tmp_path):
    assert entries(tmp_path, "pretrained: owner/name") == [Checkpoint("owner/name", line=2)]


def test_every_field_is_read(tmp_path):
    text = """
description: all of it
defaults: {seed: 3, num_docs: 5}
checkpoints:
  - pretrained: owner/name
    revision: step1000
    tasks: longshort_perplexity, hellaswag
    family: one
    params: 7e9
    train_tokens: 2000000000000
    train_length: 2048
    model_args: {peft: owner/adapter, max_length: 8192, parallelize: true, ratios: [1, 0.5, null]}
    dtype: bfloat16
    trust_remote_code: true
    corpus: builtin
    lengths: [64, 16, 32, 16]
    num_docs: 7
    tail_tokens: 4
    longbench_dir: data/longbench
    limit: 0.5
    batch_size: auto
    resources: {gpus: 2, cpus: 8, memory: 24GB}
    timeout: 1.5
    cpu_offload: yes
    gated: true
    license: llama2
"""
    assert load(tmp_path, text) == [
        Checkpoint(
            "owner/name",
            tasks=("longshort_perplexity", "hellaswag"),
            revision="step1000",
            family="one",
            params=7_000_000_000,
            train_tokens=2_000_000_000_000,
            train_length=2048,
            model_args={"peft": "owner/adapter", "max_length": 8192, "parallelize": True, "ratios": [1, 0.5, None]},
            dtype="bfloat16",
            trust_remote_code=True,
            corpus="builtin",
            lengths=(16, 32, 64),
            num_docs=7,
            tail_tokens=4,
            seed=3,
            longbench_dir=str(tmp_path / "data" / "longbench"),
            limit=0.5,
            batch_size="auto",
            resources=Resources(gpus=2, cpus=8, memory=24_000_000_000),
            timeout=1.5,
            cpu_offload=True,
            gated=True,
            license="llama2",
            line=5,
        )
    ]


def test_every_field_of_a_checkpoint_can_be_given():
    names = {field.name for field in fields(Checkpoint)}
    assert names - {"pretrained", "revision", "line"} == set(FIELDS)


def test_lengths_as_text(tmp_path):
    (checkpoint,) = entries(tmp_path, "{pretrained: owner/name, lengths: '64, 16'}")
    assert checkpoint.lengths == (16, 64)


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


def test_metadata_is_what_the_tasks_take(tmp_path):
    (checkpoint,) = entries(tmp_path, "{pretrained: owner/name, lengths: [16, 32], params: 5, family: f}")
    metadata = checkpoint.metadata()
    assert metadata["lengths"] == [16, 32]
    assert "tail_tokens" not in metadata  # None would be no setting
    assert settings_from(metadata).params == 5


# ---- revisions


def test_revisions_by_name(tmp_path):
    found = entries(tmp_path, "{pretrained: owner/name, revisions: [main, step1, v2.0]}")
    assert [checkpoint.revision for checkpoint in found] == ["main", "step1", "v2.0"]
    assert {checkpoint.train_tokens for checkpoint in found} == {None}


@pytest.mark.parametrize(
    "rule",
    [
        "{template: 'step{}', values: [0, 1000, 2000], tokens_per_step: 2097152}",
        "{template: 'step{}', first: 0, last: 2999, every: 1000, tokens_per_step: 2097152}",
        "{first: 0, last: 2000, every: 1000, tokens_per_step: 2097152}",
    ],
)
def test_revisions_by_rule_and_the_tokens_seen(tmp_path, rule):
    text = f"defaults: {{train_tokens: 5}}\ncheckpoints: [{{pretrained: owner/name, revisions: {rule}}}]"
    found = load(tmp_path, text)
    assert [checkpoint.revision for checkpoint in found] == ["step0", "step1000", "step2000"]
    assert [checkpoint.train_tokens for checkpoint in found] == [None, 2_097_152_000, 4_194_304_000]


def test_names_are_readable_and_tell_checkpoints_apart(tmp_path):
    make_folder(tmp_path / "runs" / "step-100")
    found = entries(
        tmp_path,
        "pretrained: EleutherAI/pythia-70m",
        "{pretrained: EleutherAI/pythia-70m, revision: step1000}",
        "{pretrained: EleutherAI/pythia-70m, model_args: {peft: owner/adapter}}",
        "{pretrained: EleutherAI/pythia-70m, revision: step1000, model_args: {delta: owner/more}}",
        "pretrained: runs/step-100",
    )
    assert [checkpoint.name for checkpoint in found] == [
        "EleutherAI/pythia-70m",
        "EleutherAI/pythia-70m@step1000",
        "EleutherAI/pythia-70m+adapter",
        "EleutherAI/pythia-70m+more@step1000",
        "step-100",
    ]
    assert [checkpoint.is_local for checkpoint in found] == [False] * 4 + [True]


# ---- folders and paths


def test_folders_are_those_with_a_checkpoint(tmp_path):
    for name in ("b", "a", "b.partial"):
        make_folder(tmp_path / "runs" / name)
    make_folder(tmp_path / "runs" / "c", RECORD, config=False)
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    make_folder(tmp_path / "other" / "deep" / "d")
    found = entries(tmp_path, "folders: [runs/*, 'runs/a', other/**]")
    assert [checkpoint.pretrained for checkpoint in found] == [
        str(tmp_path / "runs" / "a"),
        str(tmp_path / "runs" / "b"),
        str(tmp_path / "runs" / "c"),
        str(tmp_path / "other" / "deep" / "d"),
    ]


def test_a_comma_in_a_folder_is_part_of_its_name(tmp_path):
    make_folder(tmp_path / "a,b")
    (checkpoint,) = entries(tmp_path, "folders: 'a,*'")
    assert checkpoint.name == "a,b"


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


# ---- what a checkpoint of our training says of itself


def test_own_record_wins_over_defaults_and_an_entry_over_both(tmp_path):
    make_folder(tmp_path / "run", RECORD)
    text = """
defaults: {family: by-default, train_length: 128, seed: 5}
checkpoints:
  - pretrained: ./run
  - {pretrained: ./run, family: by-entry, params: 1, train_tokens: 2, train_length: 3, corpus: builtin}
"""
    own, told = load(tmp_path, text)
    assert (own.family, own.params, own.train_tokens, own.train_length, own.seed) == (
        "Llama-2-7b-hf",
        6_738_415_616,
        52_428_800,
        4096,
        5,
    )
    assert (told.family, told.params, told.train_tokens, told.train_length) == ("by-entry", 1, 2, 3)
    assert not own.trust_remote_code  # the record's needs_remote_code is no trust


def test_without_a_base_the_family_is_the_folder(tmp_path):
    config = {"base": None, "model_config": "/somewhere/tiny.json"}
    make_folder(tmp_path / "from-nothing", RECORD | {"base": "/somewhere/tiny.json", "config": config})
    (checkpoint,) = entries(tmp_path, "folders: from-*")
    assert checkpoint.family == "from-nothing"


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "null",
        RECORD | {"tokens_seen": "many"},
        RECORD | {"model": None},
        RECORD | {"train_length": 0},
        RECORD | {"config": {"base": 5}},
        {key: value for key, value in RECORD.items() if key != "tokens_seen"},
    ],
)
def test_a_damaged_record_is_named(tmp_path, record):
    make_folder(tmp_path / "run", record)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "run" / "longshort.json"))):
        entries(tmp_path, "folders: run")


def test_a_record_of_our_training_is_understood(tmp_path):
    """The keys are those that training writes."""
    source = (Path(__file__).parents[2] / "harness/longshort/training/checkpoint.py").read_text("utf-8")
    for key in ("base", "config", "tokens_seen", "train_length", "model", "num_parameters"):
        assert f'"{key}":' in source


# ---- mistakes

AT = "{pretrained: a/b, "
MISTAKES = {
    f"{AT}lengths: [many]}}": "checkpoints[0].lengths[0]: 'many' is not a whole number of at least 8.",
    f"{AT}lengths: many}}": "checkpoints[0].lengths: 'many' is not a whole number of at least 8.",
    f"{AT}lengths: [4]}}": "checkpoints[0].lengths[0]: '4' is not a whole number of at least 8.",
    f"{AT}lengths: []}}": "checkpoints[0].lengths: there is no length.",
    f"{AT}lengths: {{a: 1}}}}": "checkpoints[0].lengths: this has to be text.",
    f"{AT}lengths: [64], tail_tokens: 64}}": "checkpoints[0].tail_tokens: tail_tokens=64 must be below",
    f"{AT}lenghts: [64]}}": "checkpoints[0].lenghts: there is no such field; did you mean 'lengths'?",
    f"{AT}xyzzy: 1}}": "checkpoints[0].xyzzy: there is no such field; known: pretrained",
    f"{AT}seed: 1, seed: 2}}": "checkpoints[0].seed: it is given twice.",
    f"{AT}[a]: 2}}": "a name has to be text.",
    f"{AT}params: -1}}": "checkpoints[0].params: '-1' is not a whole number of at least 1.",
    f"{AT}params: 1.5}}": "checkpoints[0].params: '1.5' is not a whole number of at least 1.",
    f"{AT}params: true}}": "checkpoints[0].params: 'true' is not a whole number of at least 1.",
    f"{AT}params: null}}": "checkpoints[0].params: 'null' is not a whole number of at least 1.",
    f"{AT}params: .inf}}": "checkpoints[0].params: '.inf' is not a whole number of at least 1.",
    f"{AT}params: [1]}}": "checkpoints[0].params: a list is not a whole number of at least 1.",
    f"{AT}params: !!int x}}": "checkpoints[0].params: this is no plain value.",
    f"{AT}trust_remote_code: 1}}": "checkpoints[0].trust_remote_code: '1' is neither true nor false.",
    f"{AT}trust_remote_code: 'true'}}": "checkpoints[0].trust_remote_code: 'true' is neither true nor false.",
    f"{AT}dtype: int8}}": "checkpoints[0].dtype: 'int8' is none of auto, float32, bfloat16, float16.",
    f"{AT}limit: 0}}": "checkpoints[0].limit: '0' is not a number above 0.",
    f"{AT}timeout: soon}}": "checkpoints[0].timeout: 'soon' is not a number above 0.",
    f"{AT}batch_size: big}}": "checkpoints[0].batch_size: 'big' is not a whole number of at least 1.",
    f"{AT}family: null}}": "checkpoints[0].family: this has to be text.",
    f'{AT}family: "\\ud800"}}': "line 2",  # half a character; the C loader refuses it itself
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
    f"{AT}revision: a, revisions: [b]}}": "checkpoints[0].revisions: give revision or revisions, not both.",
    f"{AT}revisions: []}}": "checkpoints[0].revisions: there is no revision.",
    f"{AT}revisions: {{template: step, values: [1]}}}}": "revisions.template: 'step' must hold one {}, for the step.",
    f"{AT}revisions: {{template: 'a{{}}'}}}}": "revisions: give either values, or first, last and every.",
    f"{AT}revisions: {{values: [1], first: 1}}}}": "checkpoints[0].revisions: give either values, or first",
    f"{AT}revisions: {{first: 1, last: 2}}}}": "checkpoints[0].revisions: 'every' is missing",
    f"{AT}revisions: {{first: 2, last: 1, every: 1}}}}": "checkpoints[0].revisions: there is no revision.",
    f"{AT}revisions: {{first: 1, last: 1e15, every: 1}}}}": "checkpoints[0].revisions: these are more than 10000",
    f"{AT}revisions: {{values: [x]}}}}": "checkpoints[0].revisions.values[0]: 'x' is not a whole number of at least 0.",
    f"{AT}folders: x}}": "checkpoints[0]: give either pretrained, a name or folder, or folders, a glob of them.",
    "family: x": "checkpoints[0]: give either pretrained",
    "folders: nothing-*": "checkpoints[0].folders: 'nothing-*' matches no folder with a config.json, from ",
    "folders: []": "checkpoints[0].folders: there is no folder.",
    "owner/name": "checkpoints[0]: this value has to be a mapping",
    "pretrained: ''": "checkpoints[0].pretrained: this has to be text.",
    "pretrained: [a]": "checkpoints[0].pretrained: this has to be text.",
    "pretrained:": "checkpoints[0].pretrained: this has to be text.",
}


@pytest.mark.parametrize("entry", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_told_with_its_line_and_field(tmp_path, entry):
    with pytest.raises(UserError) as error:
        entries(tmp_path, entry)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'manifest.yaml'}, line 2")
    assert MISTAKES[entry] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "manifest.yaml is empty."),
        ("# nothing", "manifest.yaml is empty."),
        ("[a]", "line 1: this manifest has to be a mapping"),
        ("a: [1\nb: 2", "line 2: not valid YAML"),
        ("a: b\n\tc: d", "line 2: not valid YAML"),
        ("a: *b", "line 1: not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML"),
        ("description: x", "line 1: there is no list of checkpoints."),
        ("checkpoints: []", "line 1, checkpoints: the list is empty."),
        ("checkpoints: {}", "line 1, checkpoints: this has to be a list."),
        ("defaults: []\ncheckpoints: []", "line 1, defaults: this value has to be a mapping"),
        ("checkpoint: []", "line 1, checkpoint: there is no such field; did you mean 'checkpoints'?"),
        ("checkpoints: []\ncheckpoints: []", "line 2, checkpoints: it is given twice."),
        ("defaults:\n  pretrained: a\ncheckpoints: []", "line 2, defaults.pretrained: there is no such field"),
        ("defaults:\n  revision: a\ncheckpoints: []", "line 2, defaults.revision: there is no such field"),
        ("defaults:\n  lengths: x\ncheckpoints: []", "line 2, defaults.lengths: 'x' is not a whole number"),
        (
            "defaults: {lengths: [64]}\ncheckpoints:\n- {pretrained: a, tail_tokens: 99}",
            "line 3, checkpoints[0].tail_tokens: tail_tokens=99 must be below the smallest length, 64.",
        ),
        (
            "defaults: {tail_tokens: 99}\ncheckpoints:\n- {pretrained: a}\n- {pretrained: b, lengths: [64]}",
            "line 4, checkpoints[1]: tail_tokens=99 must be below the smallest length, 64.",
        ),
    ],
)
def test_mistakes_around_the_entries(tmp_path, text, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        load(tmp_path, text)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_what_cannot_be_read_names_the_shipped_ones(tmp_path, content):
    file = tmp_path / "none.yaml"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_manifest(str(file))
    assert str(file) in str(error.value)
    assert all(name in str(error.value) for name in SHIPPED)


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{pretrained: a/b}", "{pretrained: a/b, seed: 7}"),
        ("{pretrained: a/b, revisions: [x, y]}", "{pretrained: a/b, revision: y}"),
        ("{pretrained: a/b, tasks: longshort_*}", "{pretrained: a/b, tasks: longshort_perplexity}"),
        ("{pretrained: ./run}", "{folders: r*}"),
        ("{pretrained: a/b, model_args: {peft: c/d}}", "{pretrained: a/b, model_args: {peft: c/d, x: 1}}"),
    ],
)
def test_what_the_table_could_not_tell_apart(tmp_path, one, other):
    make_folder(tmp_path / "run")
    with pytest.raises(UserError, match="lines 2 and 3: both ask for longshort_perplexity of"):
        entries(tmp_path, one, other)


@pytest.mark.parametrize(
    "other",
    [
        "{pretrained: a/c}",
        "{pretrained: a/b, revision: x}",
        "{pretrained: a/b, corpus: builtin}",
        "{pretrained: a/b, tasks: hellaswag}",
        "{pretrained: a/b, model_args: {peft: c/d}}",
    ],
)
def test_what_the_table_tells_apart(tmp_path, other):
    assert len(entries(tmp_path, "{pretrained: a/b}", other)) == 2


# ---- shipped manifests


def test_the_shipped_manifests_are_these():
    assert set(shipped()) == SHIPPED


def load_shipped(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Checkpoint]:
    monkeypatch.chdir(folder)
    if name == "demo":
        from longshort.demo import Scale, training_plan

        for config in training_plan(folder / "longshort-demo", Scale()):
            own = {"base": config.base, "config": {"base": config.base}, "train_length": config.train_length}
            make_folder(Path(config.output), RECORD | own)
    return load_manifest(name)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_manifests_load(name, tmp_path, monkeypatch):
    found = load_shipped(name, tmp_path, monkeypatch)
    names = [checkpoint.name for checkpoint in found]
    assert len(set(names)) == len(names)
    assert yaml.safe_load(shipped()[name].read_text("utf-8"))["description"]
    for checkpoint in found:
        assert checkpoint.family, checkpoint.name
        assert checkpoint.is_local or re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint.pretrained), checkpoint.name
        size = re.search(r"(?<![\dx.])(\d+(?:\.\d+)?)([mMbB])(?![a-z])", checkpoint.pretrained.replace("_", "."))
        if size and checkpoint.params and not checkpoint.is_local:  # no slip of a digit
            stated = float(size[1]) * {"m": 1e6, "b": 1e9}[size[2].lower()]
            assert checkpoint.params == pytest.approx(stated, rel=0.35), checkpoint.name


@pytest.mark.parametrize("name", sorted(SHIPPED - {"demo"}))
def test_every_fact_of_a_shipped_manifest_has_a_source(name):
    """Each entry, or the entries around it, stand below a comment."""
    lines = shipped()[name].read_text("utf-8").splitlines()
    start = lines.index("checkpoints:")
    is_sourced = "# Sources:" in "\n".join(lines[:start])
    for line in lines[start + 1 :]:
        is_sourced = is_sourced or line.lstrip().startswith("#")
        assert is_sourced or "pretrained" not in line, line


def test_sizes_of_the_shipped_manifests(tmp_path, monkeypatch):
    count = {name: len(load_shipped(name, tmp_path, monkeypatch)) for name in SHIPPED}
    assert count["demo"] == 12
    assert count["pythia"] == 80
    assert 15 <= count["paper"] <= 20
    assert 18 <= count["small"] <= 25
    assert 18 <= count["long-context"] <= 25


def test_the_demo_is_evaluated_as_by_the_demo(tmp_path, monkeypatch):
    from longshort.demo import TRAIN_LENGTH, Scale

    found = load_shipped("demo", tmp_path, monkeypatch)
    scale = Scale()
    for checkpoint in found:
        extension = checkpoint.name.partition("-")[0]
        assert checkpoint.family == extension
        assert checkpoint.trust_remote_code == (extension in ("clex", "eabf"))
        assert checkpoint.lengths == scale.lengths
        assert checkpoint.num_docs == scale.num_docs
        assert checkpoint.train_length == TRAIN_LENGTH
        assert (checkpoint.corpus, checkpoint.dtype) == ("builtin", "float32")


def test_the_demo_before_it_has_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="longshort-demo/checkpoints/plain-\\*' matches no folder"):
        load_manifest("demo")


def test_steps_of_pythia():
    found = load_manifest("pythia")
    assert {checkpoint.family for checkpoint in found} == {
        f"pythia-{size}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
    }
    for checkpoint in found:
        step = int(checkpoint.revision.removeprefix("step"))
        assert step % 1000 == 0 or step in [2**power for power in range(10)]  # the branches there are
        assert checkpoint.train_tokens == step * 2_097_152
    assert max(checkpoint.train_tokens or 0 for checkpoint in found) == 299_892_736_000


def test_what_needs_several_gpus_is_spread_over_them():
    for name in sorted(SHIPPED - {"demo"}):
        for checkpoint in load_manifest(name):
            gigabytes = (checkpoint.params or 0) * 2 / 1e9  # bfloat16
            gpus = checkpoint.resources.gpus or 1
            assert gigabytes < 0.8 * 80 * gpus, checkpoint.name
            assert (gpus > 1) == bool(checkpoint.model_args.get("parallelize")), checkpoint.name


def test_shipped_remote_code_is_the_exception():
    trusting = {
        checkpoint.pretrained
        for name in SHIPPED - {"demo"}
        for checkpoint in load_manifest(name)
        if checkpoint.trust_remote_code
    }
    assert trusting == {
        "DAMO-NLP-SG/CLEX-7B-16K",
        "DAMO-NLP-SG/CLEX-LLaMA-2-7B-64K",
        "DAMO-NLP-SG/CLEX-Phi-2-32K",
    }


@pytest.mark.parametrize(
    ("owner", "license_"),
    [("meta-llama/Llama-2", "llama2"), ("meta-llama/Llama-3.1", "llama3.1"), ("google/", "gemma")],
)
def test_gated_models_are_marked(owner, license_):
    found = [
        checkpoint
        for name in SHIPPED - {"demo"}
        for checkpoint in load_manifest(name)
        if checkpoint.pretrained.startswith(owner)
    ]
    assert found
    assert all(checkpoint.gated and checkpoint.license == license_ for checkpoint in found)


# ---- speed and robustness


def test_a_thousand_entries_in_about_a_second(tmp_path):
    lines = [
        f"{{pretrained: owner/model-{index}, family: f, lengths: [64, 128], params: 7e9}}" for index in range(1000)
    ]
    entries(tmp_path, lines[0])  # what is read once
    start = time.process_time()
    assert len(entries(tmp_path, *lines)) == 1000
    assert time.process_time() - start < 2.5  # 0.5 s on an idle core


def test_nothing_heavy_is_imported():
    heavy = ("torch", "transformers", "lm_eval", "pandas")
    code = f"import sys, longshort.sweep.manifest; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
    st.sampled_from(["step{}", "a/b", "./x", "~", "~nobody", "*", "[", "24GB", "auto", "1e400", "0x1", "longshort_*"]),
)
NAMES = st.sampled_from(
    [
        *FIELDS,
        *("pretrained", "folders", "revision", "revisions"),
        *("template", "values", "first", "last", "every", "tokens_per_step"),
        *("gpus", "cpus", "memory", "peft", "x"),
    ]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
ENTRIES = st.dictionaries(NAMES, VALUES, max_size=4).flatmap(
    lambda entry: st.sampled_from([entry, entry | {"pretrained": "a/b"}])
)
MANIFESTS = st.fixed_dictionaries(
    {"checkpoints": st.lists(ENTRIES, min_size=1, max_size=3)}, optional={"defaults": ENTRIES, "description": VALUES}
)
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_says_why(folder: Path, text: str) -> None:
    try:
        found = load(folder, text)
    except UserError as error:
        found, message = [], str(error)
    else:
        message = ""
    assert bool(found) != bool(message)
    assert "\n" not in message
    for checkpoint in found:
        settings_from(checkpoint.metadata())
        json.dumps(dict(checkpoint.model_args))


@FUZZ
@given(data=MANIFESTS)
def test_whatever_values_it_loads_or_says_why(tmp_path, data):
    loads_or_says_why(tmp_path, yaml.safe_dump(data))


@FUZZ
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.text("{}[]:,-*&!|>'\"#%@` \n\tab01", max_size=40))
@example("[" * 100_000)
@example("{a: " * 5_000)
@example("a: &x [*x]")
@example("checkpoints: &x [*x]")
@example("checkpoints: [{pretrained: a, model_args: &x {y: *x}}]")
@example("checkpoints: [{pretrained: a, params: 0x" + "f" * 5000 + "}]")
@example("checkpoints: [{pretrained: a, params: " + "9" * 5000 + "}]")
@example("checkpoints: [{pretrained: " + "a" * 5000 + "}]")
@example("checkpoints: [{pretrained: ./" + "a" * 5000 + "}]")
@example("checkpoints: [{pretrained: a, corpus: " + "a" * 5000 + "}]")
@example("checkpoints: [{folders: " + "a" * 5000 + "}]")
@example('checkpoints: [{pretrained: "./\\ud800"}]')
@example('checkpoints: [{pretrained: "a\\0b"}]')
@example("checkpoints: [{pretrained: a, gated: !!bool x}]")
@example("checkpoints: [{pretrained: a, params: !!int ''}]")
@example("checkpoints: [{pretrained: a, params: !!timestamp x}]")
@example("checkpoints: [{pretrained: a, params: !!python/object:os.system x}]")
@example("checkpoints: [{pretrained: ~nobody/x}]")
@example("checkpoints: [{<<: {pretrained: a}}]")
def test_whatever_text_it_loads_or_says_why(tmp_path, text):
    loads_or_says_why(tmp_path, text)
    loads_or_says_why(tmp_path, f"checkpoints:\n- pretrained: a/b\n  {text}")
