"""From an entry to checkpoints: revisions, folders, and the records of our own training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longshort.errors import UserError
from tests.sweep.manifests import RECORD, assert_error, entries, load, make_folder

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


# ---- the record of a checkpoint of our training


def test_own_record_wins_over_defaults_and_an_entry_over_both(tmp_path):
    make_folder(tmp_path / "run", RECORD)
    text = """
defaults: {family: by-default, train_length: 128, seed: 5}
checkpoints:
  - pretrained: ./run
  - {pretrained: ./run, family: by-entry, params: 1, train_tokens: 2, train_length: 3, corpus: builtin}
"""
    own, given = load(tmp_path, text)
    assert (own.family, own.params, own.train_tokens, own.train_length, own.seed) == (
        "Llama-2-7b-hf",
        6_738_415_616,
        52_428_800,
        4096,
        5,
    )
    assert (given.family, given.params, given.train_tokens, given.train_length) == ("by-entry", 1, 2, 3)
    assert not own.trust_remote_code  # the record's needs_remote_code is no trust


def test_without_a_base_the_family_is_the_folder(tmp_path):
    config = {"base": None, "model_config": "/somewhere/tiny.json"}
    make_folder(tmp_path / "from-nothing", RECORD | {"base": "/somewhere/tiny.json", "config": config})
    (checkpoint,) = entries(tmp_path, "folders: from-*")
    assert checkpoint.family == "from-nothing"


def test_families_that_share_only_a_name_are_reported(tmp_path, caplog):
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
    facts = [
        (f"{tmp_path}/a/step50", f"{tmp_path}/b/step50", "'step50'"),
        ("bases/a/start", "bases/b/start", "'start'"),
    ]
    for message, expected in zip(caplog.messages, facts, strict=True):
        assert all(fact in message for fact in (*expected, "manifest.yaml", "family"))


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
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "run" / "longshort.json"))) as caught:
        entries(tmp_path, "folders: run")
    assert caught.value.kind == "data"


def test_a_record_of_our_training_is_understood(tmp_path):
    """The keys are those that training writes."""
    source = (Path(__file__).parents[3] / "harness/longshort/training/record.py").read_text("utf-8")
    for key in ("base", "config", "tokens_seen", "train_length", "model", "num_parameters"):
        assert f'"{key}":' in source


# ---- mistakes


@pytest.mark.parametrize(
    ("rest", "field", "facts"),
    [
        ("revision: a, revisions: [b]", "revisions", ("revision",)),
        ("revisions: []", "revisions", ()),
        ("revisions: {template: step, values: [1]}", "revisions.template", ("'step'", "{}")),
        ("revisions: {template: 'a{}'}", "revisions", ("values", "first", "last", "every")),
        ("revisions: {values: [1], first: 1}", "revisions", ("values", "first", "last", "every")),
        ("revisions: {first: 1, last: 2}", "revisions", ("'every'",)),
        ("revisions: {first: 2, last: 1, every: 1}", "revisions", ()),
        ("revisions: {first: 1, last: 1e15, every: 1}", "revisions", ("10000",)),
        ("revisions: {first: 1, last: 5, every: 0}", "revisions.every", ("'0'", "at least 1")),
        ("revisions: {values: [0, x]}", "revisions.values[1]", ("'x'", "at least 0")),
        ("revisions: {values: [0], tokens_per_step: true}", "revisions.tokens_per_step", ("'true'",)),
        ("revisions: {step: 1}", "revisions.step", ("template", "values")),
    ],
)
def test_a_wrong_revision_is_reported_with_its_line_and_field(
    tmp_path: Path, rest: str, field: str, facts: tuple[str, ...]
) -> None:
    assert_error(tmp_path, f"{{pretrained: a/b, {rest}}}", f"checkpoints[0].{field}", *facts)


def test_folders_that_do_not_exist(tmp_path: Path) -> None:
    assert_error(
        tmp_path, "folders: nothing-*", "checkpoints[0].folders", "'nothing-*'", str(tmp_path), kind="not_found"
    )
    make_folder(tmp_path / "run")
    assert_error(tmp_path, "folders: [run, no-*]", "checkpoints[0].folders[1]", "'no-*'", kind="not_found")
    assert_error(tmp_path, "folders: []", "checkpoints[0].folders")
