"""Which results still hold, and why others do not."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from hypothesis import given
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.results.tokens import TokenFile, token_file_of
from longshort.settings import Checkpoint
from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.store import plan
from longshort.sweep.store.fingerprint import Hashes, identify_corpus, resolve_all
from longshort.sweep.store.folder import Folder, key_of, slug
from longshort.sweep.store.plan import make_plan, relabel, why_invalid
from tests.errors import assert_facts, contains, user_error

PLAIN = st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), st.integers(0, 2), st.text(max_size=2)))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "text.txt").write_text("some text")
    return Checkpoint(str(folder), tasks=("longshort_perplexity",), corpus=str(tmp_path / "text.txt"), family="f")


def measured(checkpoint: Checkpoint, folder: Folder) -> None:
    """Save a result for all that is missing."""
    (item,) = make_plan([checkpoint], folder)
    for task, inputs in item.inputs.items():
        data: dict[str, Any] = {"results": {task: {}}, "configs": {task: {"metadata": {"family": checkpoint.family}}}}
        folder.save(checkpoint, task, inputs, data)


def test_what_is_saved_is_done(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    assert make_plan([checkpoint], folder)[0].missing == {"longshort_perplexity": None}
    measured(checkpoint, folder)
    (item,) = make_plan([checkpoint], folder)
    assert item.done == ["longshort_perplexity"]
    assert not item.missing


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"lengths": (16,)}, ("lengths", [2048, 4096, 8192, 16384, 32768], [16])),
        ({"seed": 3}, ("seed", 0, 3)),
        ({"num_docs": 3}, ("num_docs", 32, 3)),
        ({"tail_tokens": 3}, ("tail_tokens", None, 3)),
        ({"limit": 2}, ("limit", None, 2)),
        ({"model_args": {"max_length": 100}}, ("max_length", None, 100)),
    ],
)
def test_whatever_can_change_a_number_is_measured_again(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any], facts: tuple[object, ...]
) -> None:
    folder = Folder(tmp_path / "out")
    measured(checkpoint, folder)
    (item,) = make_plan([replace(checkpoint, **change)], folder)
    (reason,) = item.missing.values()
    assert list(item.missing) == ["longshort_perplexity"]
    assert_facts(str(reason), *facts)


def test_key_spans_count_by_their_content_and_only_for_longppl(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, spans = Folder(tmp_path / "out"), tmp_path / "spans.jsonl"
    spans.write_text("one")
    both = ("longshort_perplexity", "longshort_longppl")
    checkpoint = replace(checkpoint, tasks=both, key_spans=str(spans))
    measured(checkpoint, folder)
    copy = tmp_path / "elsewhere" / "spans.jsonl"
    copy.parent.mkdir()
    copy.write_text("one")
    for same in (checkpoint, replace(checkpoint, key_spans=str(copy))):
        assert make_plan([same], folder)[0].done == list(both)
    spans.write_text("two")
    copy.unlink()
    copy.with_name("slice_0.txt").write_text("[1, 2]")
    for other in (str(spans), str(copy.parent), "self"):
        (item,) = make_plan([replace(checkpoint, key_spans=other)], folder)
        assert item.done == ["longshort_perplexity"]
        assert_facts(str(item.missing["longshort_longppl"]), "key spans")
    measured(replace(checkpoint, key_spans="self"), folder)
    assert make_plan([replace(checkpoint, key_spans="self")], folder)[0].done == list(both)
    with user_error("not_found", "gone.jsonl", field="key_spans"):
        make_plan([replace(checkpoint, key_spans="gone.jsonl")], folder)


def test_metadata_of_other_tasks_measures_those_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    both = replace(checkpoint, tasks=("longshort_perplexity", "niah_single_1"), task_args={"max_seq_lengths": [4096]})
    measured(both, folder)
    assert not make_plan([both], folder)[0].missing
    (item,) = make_plan([replace(both, task_args={"max_seq_lengths": [4096, 8192]})], folder)
    assert item.done == ["longshort_perplexity"]
    assert_facts(str(item.missing["niah_single_1"]), "task_args", "[4096]", "[4096, 8192]")
    assert list(make_plan([replace(both, task_args=None)], folder)[0].missing) == ["niah_single_1"]


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"model_args": {"load_in_4bit": True}}])
def test_another_variant_is_measured_too_and_replaces_nothing(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder, other = Folder(tmp_path / "out"), replace(checkpoint, **change)
    measured(checkpoint, folder)
    assert [item.missing for item in make_plan([checkpoint, other], folder)] == [{}, {"longshort_perplexity": None}]
    measured(other, folder)
    assert not any(item.missing for item in make_plan([checkpoint, other], folder))


@pytest.mark.parametrize("change", [{"train_length": 7}, {"params": 7}, {"train_tokens": 7}, {"family": "other"}])
def test_what_only_describes_a_checkpoint_is_rewritten(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = Folder(tmp_path / "out")
    measured(checkpoint, folder)
    changed = replace(checkpoint, **change)
    items = make_plan([changed], folder)
    assert items[0].done == ["longshort_perplexity"]
    assert relabel(items, folder) == 1
    saved = folder.all_saved()[slug(changed), "longshort_perplexity"]
    metadata = saved.data["configs"]["longshort_perplexity"]["metadata"]
    assert change.items() <= metadata.items()
    assert relabel(items, folder) == 0


@pytest.mark.parametrize("change", [{"batch_size": 8}, {"timeout": 1.0}, {"cpu_offload": True}, {"line": 9}])
def test_how_it_is_run_changes_nothing(checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Folder(tmp_path / "out")
    measured(checkpoint, folder)
    assert not make_plan([replace(checkpoint, **change)], folder)[0].missing


def test_new_weights_a_new_text_and_new_libraries(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path / "out")
    measured(checkpoint, folder)

    def reason() -> str:
        return str(make_plan([checkpoint], folder)[0].missing["longshort_perplexity"])

    weights = Path(checkpoint.pretrained) / "model.safetensors"
    weights.write_bytes(b"Weights")  # of the same size
    assert contains(reason(), "checkpoint")
    weights.write_bytes(b"weights")
    Path(checkpoint.corpus).write_text("same size")
    assert contains(reason(), "corpus")
    Path(checkpoint.corpus).write_text("some text")
    assert not make_plan([checkpoint], folder)[0].missing
    now = plan.versions()
    monkeypatch.setattr(plan, "versions", lambda: now | {"torch": "0.1"})
    assert contains(reason(), "torch", now["torch"], "0.1")
    monkeypatch.setattr(plan, "versions", lambda: now)
    monkeypatch.setattr(plan, "_task_versions", lambda: {"longshort_perplexity": "9.9"})
    assert contains(reason(), "task_version", "2.0", "9.9")


def test_a_copied_checkpoint_is_the_same_by_its_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    hashes = Hashes(tmp_path / "hashes.json")
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.pretrained, copy)
    (copy / "README.md").write_text("a note")
    found = resolve_all([checkpoint, replace(checkpoint, pretrained=str(copy))], hashes, {})
    assert len({resolved.identity for resolved in found.values()}) == 1
    hashes.save()
    again = Hashes(tmp_path / "hashes.json")
    assert again.known == hashes.known


def test_a_damaged_memory_of_hashes_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "hashes.json").write_text("[1, 2")
    assert Hashes(tmp_path / "hashes.json").known == {}


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt") as raised:
        identify_corpus(str(tmp_path / "none.txt"), Hashes(tmp_path / "h"), None)
    assert (raised.value.kind, raised.value.field) == ("not_found", "corpus")


def test_a_manifest_s_line_is_added_to_a_corpus_that_is_not_there(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ine 7\b.*none\.txt") as raised:
        make_plan([replace(checkpoint, corpus=str(tmp_path / "none.txt"), line=7)], Folder(tmp_path / "out"))
    assert (raised.value.kind, raised.value.field) == ("not_found", "corpus")


def test_a_corpus_file_with_brackets_in_its_name_can_be_swept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """As a glob the name matches another file."""
    (tmp_path / "my[1].txt").write_text("some text")
    (tmp_path / "my1.txt").write_text("other text")
    bracketed = replace(checkpoint, corpus=str(tmp_path / "my[1].txt"))
    folder = Folder(tmp_path / "out")
    measured(bracketed, folder)
    (item,) = make_plan([bracketed], folder)
    assert item.done == ["longshort_perplexity"]
    line = f"my[1].txt\0{hashlib.sha256(b'some text').hexdigest()}\n"
    expected = f"sha256:{hashlib.sha256(line.encode()).hexdigest()}"
    assert item.inputs["longshort_perplexity"]["corpus_identity"] == expected
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my[1].txt").write_text("some text")  # the hash is of the file's own name and its bytes
    elsewhere = identify_corpus(str(tmp_path / "other" / "my[1].txt"), Hashes(tmp_path / "h"), None)
    assert elsewhere == expected
    assert identify_corpus(str(tmp_path / "my*.txt"), Hashes(tmp_path / "h"), None) != expected
    assert identify_corpus(str(tmp_path / "my[1]*.txt"), Hashes(tmp_path / "h"), None) != expected


def test_the_column_of_a_corpus_belongs_to_its_identity(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "some text", "body": "other text"}')
    hashes = Hashes(tmp_path / "h")
    plain, body, empty = (identify_corpus(f"{file}{column}", hashes, None) for column in ("", ":body", ":"))
    assert plain == empty != body
    assert identify_corpus(f"{tmp_path}/*.jsonl:body", hashes, None) == body
    folder = Folder(tmp_path / "out")
    measured(replace(checkpoint, corpus=f"{file}:body"), folder)
    (same, other) = make_plan([replace(checkpoint, corpus=f"{file}{column}") for column in (":body", "")], folder)
    assert (same.done, other.done) == (["longshort_perplexity"], [])


def test_hidden_copies_do_not_change_the_identity_of_a_corpus(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / ".ipynb_checkpoints").mkdir(parents=True)
    (texts / "book.txt").write_text("some text")
    before = identify_corpus(str(texts), Hashes(tmp_path / "h"), None)
    for name in ("._book.txt", ".ipynb_checkpoints/book.txt"):
        (texts / name).write_text("a copy")
    assert identify_corpus(str(texts), Hashes(tmp_path / "h"), None) == before


@pytest.mark.parametrize("name", ["gone", "unreadable"])
def test_a_folder_that_cannot_be_read_is_known_before_it_is_tried(
    name: str, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "gone":
        shutil.rmtree(checkpoint.pretrained)
    else:
        monkeypatch.setattr(Hashes, "file", denied)
    found = resolve_all([checkpoint], Hashes(tmp_path / "h"), {})[checkpoint.pretrained, "main"]
    assert found.identity is None
    assert found.failure is not None
    assert found.failure.kind == ("not_found" if name == "gone" else "broken")
    assert checkpoint.pretrained in found.failure.message


def denied(self: Hashes, path: Path) -> str:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RepositoryNotFoundError, "not_found"),
        (RevisionNotFoundError, "not_found"),
        (GatedRepoError, "gated"),
        (HFValidationError, "not_found"),
        (LocalEntryNotFoundError, None),
        (ConnectionError, None),
        (RuntimeError, None),
    ],
)
def test_what_the_hub_answers(
    error: type[Exception], kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*_: object, **__: object) -> None:
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        raise error("no", response=response) if issubclass(error, HfHubHTTPError) else error("no")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "repo_info", answer)
    recorded = {("owner/name", "v1"): "c" * 40}
    found = resolve_all([Checkpoint("owner/name", revision="v1")], Hashes(tmp_path / "h"), recorded)["owner/name", "v1"]
    if kind is None:
        assert (found.identity, found.failure) == ("c" * 40, None)
    else:
        assert found.failure is not None
        assert found.failure.kind == kind
        assert "'owner/name' at revision 'v1'" in found.failure.message


def test_a_hub_that_cannot_be_asked_leaves_the_commit_of_before(tmp_path: Path) -> None:
    checkpoint = Checkpoint("owner/name")
    found = resolve_all([checkpoint], Hashes(tmp_path / "h"), {("owner/name", "main"): "c" * 40})
    assert found["owner/name", "main"].identity == "c" * 40
    assert resolve_all([checkpoint], Hashes(tmp_path / "h"), {})["owner/name", "main"].identity is None


@given(PLAIN, PLAIN)
def test_a_result_holds_exactly_where_its_key_does(before: dict[str, Any], now: dict[str, Any]) -> None:
    """None and nothing are the same: what was not asked for."""
    before, now = ({name: value for name, value in inputs.items() if value is not None} for inputs in (before, now))
    assert (why_invalid(before, now) is None) == (key_of(before) == key_of(now))


def test_a_folder_name_is_never_that_of_another() -> None:
    checkpoints = [
        Checkpoint("a/b"),
        Checkpoint("a_b"),
        Checkpoint("a/b", revision="x"),
        Checkpoint("a/b", corpus="other"),
        Checkpoint("a/b", model_args={"peft": "p"}),
        Checkpoint("a/b", model_args={"delta": "p"}),
    ]
    assert len({slug(checkpoint) for checkpoint in checkpoints}) == len(checkpoints)


def test_a_thousand_checkpoints_are_planned_in_seconds(tmp_path: Path) -> None:
    entries = "".join(f"  - {{pretrained: owner/name-{index}, params: 7e9}}\n" for index in range(1000))
    manifest = tmp_path / "m.yaml"
    manifest.write_text(f"defaults: {{corpus: builtin}}\ncheckpoints:\n{entries}")
    start = time.process_time()
    items = make_plan(load_manifest(str(manifest)), Folder(tmp_path / "out"))
    assert len(items) == 1000
    assert time.process_time() - start < 30  # it takes about one


def test_a_damaged_result_is_none(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    measured(checkpoint, folder)
    (file,) = (tmp_path / "out").rglob("results_*.json")
    for content in (file.read_bytes()[:50], b"[]", json.dumps({"results": {}}).encode()):
        file.write_bytes(content)
        assert make_plan([checkpoint], folder)[0].missing == {"longshort_perplexity": None}


def test_what_a_killed_driver_left_half_written_is_removed(tmp_path: Path) -> None:
    name = f".{'0123' * 8}.tmp"
    left_overs = [tmp_path / "results" / "model" / "task" / name, tmp_path / name]  # a result, the table
    left_overs[0].parent.mkdir(parents=True)
    for file in left_overs:
        file.write_text("{")
    with Folder(tmp_path).locked():
        assert not any(file.exists() for file in left_overs)


def test_a_key_does_not_depend_on_the_order_of_settings() -> None:
    assert key_of({"a": {"x": 1, "y": 2}, "b": 0}) == key_of({"b": 0, "a": {"y": 2, "x": 1}})


# ---- per-token values


def measured_with_tokens(checkpoint: Checkpoint, folder: Folder, content: bytes = b"values") -> Path:
    (item,) = make_plan([checkpoint], folder)
    ((task, inputs),) = item.inputs.items()
    data: dict[str, Any] = {"results": {task: {}}, "configs": {task: {"metadata": {}}}}
    return folder.save(checkpoint, task, inputs, data, TokenFile(content, 1))


def reasons(checkpoint: Checkpoint, folder: Folder) -> list[str | None]:
    return list(make_plan([checkpoint], folder)[0].missing.values())


def test_results_hold_whether_or_not_they_have_token_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, with_tokens = Folder(tmp_path / "out"), replace(checkpoint, save_tokens=True)
    measured(checkpoint, folder)
    assert reasons(checkpoint, folder) == []
    (reason,) = reasons(with_tokens, folder)
    assert contains(str(reason), "save_tokens")
    measured_with_tokens(with_tokens, folder)
    assert reasons(with_tokens, folder) == reasons(checkpoint, folder) == []
    before, now = (make_plan([each], folder)[0].inputs for each in (checkpoint, with_tokens))
    assert before == now, "of what decides about results from before there was a setting save_tokens, nothing changes"
    assert "save_tokens" not in json.dumps(before)


def test_a_token_file_that_is_gone_or_changed_is_measured_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder, with_tokens = Folder(tmp_path / "out"), replace(checkpoint, save_tokens=True)
    file = token_file_of(measured_with_tokens(with_tokens, folder))
    file.write_bytes(b"other")
    (reason,) = reasons(with_tokens, folder)
    assert contains(str(reason), file.name)
    assert reasons(checkpoint, folder) == []
    file.unlink()
    (reason,) = reasons(with_tokens, folder)
    assert contains(str(reason), file.name, "No such file or directory")
    measured_with_tokens(with_tokens, folder)
    assert reasons(with_tokens, folder) == []


def test_tasks_without_documents_need_no_token_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    other = replace(checkpoint, tasks=("longshort-longbench-e-lcc",), save_tokens=True)
    measured(other, folder)
    assert reasons(other, folder) == []


def test_outdated_results_take_their_token_file_along(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "out")
    before = measured_with_tokens(checkpoint, folder, b"before")
    now = measured_with_tokens(replace(checkpoint, seed=1), folder, b"now")
    names = {path.name for path in now.parent.iterdir()}
    old_key, key = (file.stem.removeprefix("results_") for file in (before, now))
    expected = {f"results_{key}.json", f"tokens_{key}.parquet"}
    assert names == expected | {f"outdated_{old_key}.json", f"outdated_tokens_{old_key}.parquet"}
    assert token_file_of(now).read_bytes() == b"now"
    outdated = now.with_name(f"outdated_{old_key}.json")
    assert token_file_of(outdated).read_bytes() == b"before"
    again = measured_with_tokens(checkpoint, folder, b"again")  # replaces what was outdated, too
    assert token_file_of(again).read_bytes() == b"again"
    assert token_file_of(now.with_name(f"outdated_{key}.json")).read_bytes() == b"now"
