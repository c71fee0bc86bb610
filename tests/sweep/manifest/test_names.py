"""Names to show: unchanged where they are unique, else with the parts of their paths that differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.settings import Checkpoint, plain_name
from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.manifest.names import with_unique_names
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
