"""Names to show: unchanged where they are unique, else with the parts of their paths that differ."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.settings import Checkpoint, plain_name
from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.manifest.names import variant_of, with_unique_names
from longshort.sweep.store.folder import slug

PARTS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
SOURCES = st.one_of(PARTS.map(lambda parts: "/" + "/".join(parts)), st.sampled_from(["a", "a/b", "b/c"]))


def names(*checkpoints: Checkpoint) -> list[str]:
    return [checkpoint.name for checkpoint in with_unique_names(checkpoints)]


def test_names_that_are_unique_stay() -> None:
    checkpoints = [
        Checkpoint("/runs/a/step50"),
        Checkpoint("owner/step50"),
        Checkpoint("owner/step50", revision="r"),
        Checkpoint("/runs/a/base", model_args={"peft": "/adapters/x"}),
    ]
    assert names(*checkpoints) == ["step50", "owner/step50", "owner/step50@r", "base+x"]
    assert with_unique_names(checkpoints) == checkpoints


def test_as_much_of_a_path_is_shown_as_tells_it_apart() -> None:
    folders = ["/runs/a/step50", "/runs/b/step50", "/other/b/step50", "/runs/a/step60"]
    assert names(*map(Checkpoint, folders)) == ["a/step50", "runs/b/step50", "other/b/step50", "step60"]
    assert names(Checkpoint("/step50"), Checkpoint("/x/step50")) == ["/step50", "x/step50"]
    assert names(Checkpoint("gpt2"), Checkpoint("/models/gpt2")) == ["gpt2", "models/gpt2"]


def test_adapters_and_corpora_tell_apart_too() -> None:
    base = Checkpoint("/m/base", corpus="pg19")
    adapted = [replace(base, model_args={"peft": f"/runs/{name}/lora"}) for name in "xy"]
    assert names(base, *adapted) == ["base", "base+x/lora", "base+y/lora"]
    assert names(base, replace(base, corpus="/texts/news.jsonl")) == ["base on pg19", "base on news.jsonl"]


def test_model_arguments_that_make_another_model_are_in_the_name() -> None:
    one = Checkpoint("owner/run", model_args={"subfolder": "step1", "max_length": 64})
    assert names(one) == ["owner/run+subfolder=step1"], "also where it is the only one"
    quantized = Checkpoint("owner/run", revision="r", model_args={"load_in_4bit": True, "peft": "a/x"})
    assert names(one, quantized) == ["owner/run+subfolder=step1", "owner/run+x@r+load_in_4bit=True"]
    own = [Checkpoint("owner/run", model_args={"tokenizer": f"/tok/{name}/own"}) for name in "ab"]
    assert names(own[0]) == ["owner/run+tokenizer=own"]
    assert names(*own) == ["owner/run+tokenizer=a/own", "owner/run+tokenizer=b/own"]


def test_the_dtype_is_in_the_name_where_it_distinguishes() -> None:
    found = [Checkpoint("a/b", dtype=dtype) for dtype in ("auto", "float32", "bfloat16")]
    assert names(found[1], Checkpoint("a/c")) == ["a/b", "a/c"]
    assert names(*found) == ["a/b", "a/b+dtype=float32", "a/b+dtype=bfloat16"]


ARGUMENTS = st.dictionaries(st.sampled_from(["subfolder", "my_own", "tokenizer"]), SOURCES, max_size=2)


@given(st.lists(st.tuples(SOURCES, ARGUMENTS, st.sampled_from(["auto", "float32", "float16"])), max_size=6))
def test_two_variants_never_share_a_name_or_a_folder(parts: list[tuple[str, dict[str, str], str]]) -> None:
    checkpoints = [Checkpoint(source, model_args=arguments, dtype=dtype) for source, arguments, dtype in parts]
    identities = [(checkpoint.pretrained, tuple(variant_of(checkpoint).items())) for checkpoint in checkpoints]
    different = len(set(identities))
    assert len(set(names(*checkpoints))) == different
    assert len({slug(checkpoint) for checkpoint in checkpoints}) == different
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,100}", slug(checkpoint)) for checkpoint in checkpoints)


@given(st.lists(SOURCES, unique=True, max_size=6))
def test_two_checkpoints_never_share_a_name(sources: list[str]) -> None:
    checkpoints = [Checkpoint(source) for source in sources]
    labelled = with_unique_names(checkpoints)
    shown = [checkpoint.name for checkpoint in labelled]
    assert len(set(shown)) == len(shown)
    assert [slug(checkpoint) for checkpoint in labelled] == [slug(checkpoint) for checkpoint in checkpoints]
    plain = [plain_name(checkpoint) for checkpoint in checkpoints]
    for checkpoint, own in zip(labelled, plain, strict=True):
        assert (checkpoint.name == own) or plain.count(own) > 1


def test_a_manifest_has_them_with_unique_names(tmp_path: Path) -> None:
    for run in "ab":
        (tmp_path / run / "step50").mkdir(parents=True)
        (tmp_path / run / "step50" / "config.json").write_text("{}")
    (tmp_path / "m.yaml").write_text("checkpoints: [{folders: '*/step50', corpus: builtin}]")
    assert [checkpoint.name for checkpoint in load_manifest(str(tmp_path / "m.yaml"))] == ["a/step50", "b/step50"]


@pytest.mark.parametrize("pattern", ["a/step50", "*50"])
def test_only_takes_the_names_that_are_shown_and_the_short_ones(tmp_path: Path, pattern: str) -> None:
    from typer.testing import CliRunner

    from longshort.cli import app

    test_a_manifest_has_them_with_unique_names(tmp_path)
    arguments = ["sweep", str(tmp_path / "m.yaml"), "-o", str(tmp_path / "out"), "--dry-run", "--only", pattern]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert f"{1 if '/' in pattern else 2} checkpoints: 0 results exist" in done.stdout
