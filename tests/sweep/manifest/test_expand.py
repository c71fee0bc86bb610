"""Where checkpoints come from: revisions, folders, and the records of our own training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longshort.errors import UserError
from tests.sweep.manifests import RECORD, assert_told, entries, load, make_folder

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


# ---- folders


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


def test_families_that_are_one_by_name_alone_are_told(tmp_path, caplog):
    """Folders, and bases, that share a last name; not revisions of one, nor what the manifest calls a family."""
    for place in "ab":
        make_folder(tmp_path / place / "step50")
        base = f"bases/{place}/start"
        make_folder(tmp_path / place / "trained", RECORD | {"base": base, "config": {"base": base}})
        make_folder(tmp_path / place / "same", RECORD)
    found = entries(
        tmp_path,
        "folders: '[ab]/*'",
        "{pretrained: x/hub, revisions: [one, two]}",
        "{pretrained: y/hub, family: mine}",
    )
    assert [checkpoint.family for checkpoint in found] == [
        *("Llama-2-7b-hf", None, "start", "Llama-2-7b-hf", None, "start", None, None, "mine")
    ]
    told = [record.getMessage().partition("manifest.yaml: ")[2] for record in caplog.records]
    rest = "share a name: what is made of them counts as one family, "
    assert [line.partition(". Where")[0] for line in told] == [
        f"{tmp_path}/a/step50 and {tmp_path}/b/step50 {rest}'step50'",
        f"bases/a/start and bases/b/start {rest}'start'",
    ]


def test_a_folder_that_is_written_in_two_ways_is_one(tmp_path, caplog, monkeypatch):
    """The base as training recorded it, and as the manifest names it."""
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "start")
    make_folder(tmp_path / "trained", RECORD | {"base": "./start", "config": {"base": "./start"}})
    entries(tmp_path, "folders: [start, trained]")
    assert not caplog.messages


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
    source = (Path(__file__).parents[3] / "harness/longshort/training/checkpoint.py").read_text("utf-8")
    for key in ("base", "config", "tokens_seen", "train_length", "model", "num_parameters"):
        assert f'"{key}":' in source


# ---- mistakes

AT = "{pretrained: a/b, "
MISTAKES = {
    f"{AT}revision: a, revisions: [b]}}": "checkpoints[0].revisions: give revision or revisions, not both.",
    f"{AT}revisions: []}}": "checkpoints[0].revisions: there is no revision.",
    f"{AT}revisions: {{template: step, values: [1]}}}}": "revisions.template: 'step' must hold one {}, for the step.",
    f"{AT}revisions: {{template: 'a{{}}'}}}}": "revisions: give either values, or first, last and every.",
    f"{AT}revisions: {{values: [1], first: 1}}}}": "checkpoints[0].revisions: give either values, or first",
    f"{AT}revisions: {{first: 1, last: 2}}}}": "checkpoints[0].revisions: 'every' is missing",
    f"{AT}revisions: {{first: 2, last: 1, every: 1}}}}": "checkpoints[0].revisions: there is no revision.",
    f"{AT}revisions: {{first: 1, last: 1e15, every: 1}}}}": "checkpoints[0].revisions: these are more than 10000",
    f"{AT}revisions: {{values: [x]}}}}": "checkpoints[0].revisions.values[0]: 'x' is not a whole number of at least 0.",
    "folders: nothing-*": "checkpoints[0].folders: 'nothing-*' matches no folder with a config.json, from ",
    "folders: []": "checkpoints[0].folders: there is no folder.",
}


@pytest.mark.parametrize("entry", MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_about_origins_is_told_with_its_line_and_field(tmp_path, entry):
    assert_told(tmp_path, entry, MISTAKES[entry])
