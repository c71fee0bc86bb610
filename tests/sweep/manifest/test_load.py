"""A manifest as a whole: its entries with their defaults, and combinations that are refused."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.settings import Checkpoint, Resources, settings_from
from longshort.sweep.manifest.fields import names_of_fields
from longshort.sweep.manifest.load import load_manifest, shipped
from tests.errors import assert_facts
from tests.sweep.manifests import (
    assert_error,
    assert_loads_or_reports,
    assert_manifest_error,
    entries,
    load,
    make_folder,
)


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
            label="owner/name+adapter@step1000+ratios=[1,0.5,null]",
        )
    ]


def test_key_spans_are_a_path_or_self(tmp_path):
    (tmp_path / "spans.jsonl").write_text("")
    tasks = "tasks: longshort_longppl"
    found = entries(tmp_path, f"{{pretrained: a/b, {tasks}, key_spans: spans.jsonl}}")
    assert found[0].key_spans == str(tmp_path / "spans.jsonl")
    assert found[0].metadata()["key_spans"] == str(tmp_path / "spans.jsonl")
    assert entries(tmp_path, f"{{pretrained: a/b, {tasks}, key_spans: self}}")[0].key_spans == "self"


def test_longppl_without_key_spans_is_refused_by_name_and_skipped_in_a_glob(tmp_path, caplog):
    assert_error(tmp_path, "{pretrained: a/b, tasks: longshort_longppl}", "checkpoints[0].tasks", "key_spans")
    text = "defaults: {tasks: [longshort_perplexity, longshort_longppl]}\ncheckpoints: [{pretrained: a/b}]"
    assert_manifest_error(tmp_path, text, "defaults.tasks", "key_spans", line=1)
    (found,) = entries(tmp_path, "{pretrained: a/b, tasks: 'longshort_*'}")
    assert "longshort_longppl" not in found.tasks
    assert {"longshort_perplexity", "longshort_misalignment"} <= {*found.tasks}
    assert_facts(caplog.messages[-1], "longshort_longppl", "key_spans", 2)
    (found,) = entries(tmp_path, "{pretrained: a/b, tasks: 'longshort_*', key_spans: self}")
    assert "longshort_longppl" in found.tasks


def test_metadata_is_what_the_tasks_take(tmp_path):
    (checkpoint,) = entries(tmp_path, "{pretrained: owner/name, lengths: [16, 32], params: 5, family: f}")
    metadata = checkpoint.metadata()
    assert metadata["lengths"] == [16, 32]
    assert "tail_tokens" not in metadata  # None would be no setting
    assert settings_from(metadata).params == 5


def test_names_are_readable_and_unique(tmp_path):
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


# ---- mistakes


@pytest.mark.parametrize(
    ("entry", "field", "facts"),
    [
        ("{pretrained: a/b, lengths: [64], tail_tokens: 64}", ".tail_tokens", ("tail_tokens=64", "64")),
        ("{pretrained: a/b, folders: x}", "", ("pretrained", "folders")),
        ("family: x", "", ("pretrained", "folders")),
        ("owner/name", "", ("mapping",)),
    ],
)
def test_a_mistake_in_an_entry_is_reported_with_its_line(
    tmp_path: Path, entry: str, field: str, facts: tuple[str, ...]
) -> None:
    assert_error(tmp_path, entry, f"checkpoints[0]{field}", *facts)


@pytest.mark.parametrize(
    ("text", "line", "field", "facts"),
    [
        ("description: x", 1, None, ("checkpoints",)),
        ("checkpoints: []", 1, "checkpoints", ("pretrained",)),
        ("checkpoints: {}", 1, "checkpoints", ("list",)),
        ("defaults: []\ncheckpoints: []", 1, "defaults", ("mapping",)),
        ("checkpoint: []", 1, "checkpoint", ("'checkpoints'",)),
        ("defaults:\n  pretrained: a\ncheckpoints: []", 2, "defaults.pretrained", ()),
        ("defaults:\n  revision: a\ncheckpoints: []", 2, "defaults.revision", ()),
        ("defaults:\n  lengths: x\ncheckpoints: []", 2, "defaults.lengths", ("'x'",)),
        (
            "defaults: {lengths: [64]}\ncheckpoints:\n- {pretrained: a, tail_tokens: 99}",
            *(3, "checkpoints[0].tail_tokens", ("tail_tokens=99", "64")),
        ),
        (
            "defaults: {tail_tokens: 99}\ncheckpoints:\n- {pretrained: a}\n- {pretrained: b, lengths: [64]}",
            *(4, "checkpoints[1]", ("tail_tokens=99", "64")),
        ),
    ],
)
def test_mistakes_around_the_entries(
    tmp_path: Path, text: str, line: int, field: str | None, facts: tuple[str, ...]
) -> None:
    assert_manifest_error(tmp_path, text, field, *facts, line=line)


@pytest.mark.parametrize(("content", "kind"), [(None, "not_found"), (b"\xff\xfe", "data")])
def test_a_manifest_that_cannot_be_read_names_the_shipped_ones(
    tmp_path: Path, content: bytes | None, kind: str
) -> None:
    file = tmp_path / "none.yaml"
    if content:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_manifest(str(file))
    assert caught.value.kind == kind
    assert all(fact in caught.value.message for fact in (str(file), *shipped()))


def test_a_folder_is_not_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path))) as caught:
        load_manifest(str(tmp_path))
    assert caught.value.kind == "data"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{pretrained: a/b}", "{pretrained: a/b, seed: 7}"),
        ("{pretrained: a/b, revisions: [x, y]}", "{pretrained: a/b, revision: y}"),
        ("{pretrained: a/b, tasks: longshort_*}", "{pretrained: a/b, tasks: longshort_perplexity}"),
        ("{pretrained: ./run}", "{folders: r*}"),
        ("{pretrained: a/b, model_args: {peft: c/d}}", "{pretrained: a/b, model_args: {peft: c/d, max_length: 9}}"),
        ("{pretrained: a/b}", "{pretrained: a/b, model_args: {load_in_4bit: false}}"),
    ],
)
def test_results_that_could_not_be_distinguished(tmp_path: Path, one: str, other: str) -> None:
    make_folder(tmp_path / "run")
    with pytest.raises(UserError, match="longshort_perplexity") as caught:
        entries(tmp_path, one, other)
    assert (caught.value.kind, caught.value.field) == ("setting", "checkpoints")
    assert "lines 2 and 3" in caught.value.message


@pytest.mark.parametrize(
    "other",
    [
        "{pretrained: a/c}",
        "{pretrained: a/b, revision: x}",
        "{pretrained: a/b, corpus: builtin}",
        "{pretrained: a/b, tasks: hellaswag}",
        "{pretrained: a/b, model_args: {peft: c/d}}",
        "{pretrained: a/b, model_args: {subfolder: step1000}}",
        "{pretrained: a/b, model_args: {load_in_4bit: true}}",
        "{pretrained: a/b, model_args: {my_own: 1}}",
        "{pretrained: a/b, dtype: bfloat16}",
    ],
)
def test_results_that_can_be_distinguished(tmp_path: Path, other: str) -> None:
    assert len(entries(tmp_path, "{pretrained: a/b}", other)) == 2


def test_twins_are_refused_with_what_differs(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        entries(tmp_path, "{pretrained: a/b, seed: 1}", "{pretrained: a/b, model_args: {max_length: 64}}")
    assert_facts(caught.value.message, "seed", "max_length")


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
    code = f"import sys, longshort.sweep.manifest.load; print([name for name in {heavy} if name in sys.modules])"
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
        *names_of_fields(),
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


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=MANIFESTS)
def test_any_values_are_read_or_reported(tmp_path: Path, data: dict[str, Any]) -> None:
    assert_loads_or_reports(tmp_path, yaml.safe_dump(data))
