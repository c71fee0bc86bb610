"""Official rows read from a folder, a zip and (refused) the hub, and the prompts made of them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from longshort.errors import UserError
from longshort.longbench import prompts
from longshort.longbench.data import read_rows
from longshort.longbench.scores import DATASETS
from longshort.testing import tiny_tokenizer
from tests.errors import user_error
from tests.longbench.rows import make_row, write_rows


def test_folder_and_zip_give_the_same_rows(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "files", words=20)
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for file in folder.iterdir():
            opened.write(file, f"data/{file.name}")
    (tmp_path / "nested").mkdir()
    folder_with_data = tmp_path / "nested"
    write_rows(folder_with_data / "data", words=20)
    for dataset in DATASETS:
        expected = [make_row(dataset, index, 20) for index in range(3)]
        sources = [read_rows(dataset, str(place)) for place in (folder, archive, folder_with_data)]
        digest = hashlib.sha256((folder / f"{dataset}_e.jsonl").read_bytes()).hexdigest()
        assert all(source.rows == expected and source.sha256 == digest for source in sources)
        assert all(source.problems == [] and source.revision is None for source in sources)


def test_hidden_copies_in_an_archive_are_not_read(tmp_path: Path) -> None:
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for index, folder in enumerate(("__MACOSX/data", "data/.ipynb_checkpoints", "data"), 1):
            opened.writestr(f"{folder}/qasper_e.jsonl", json.dumps(make_row("qasper", index)))
        opened.writestr("__MACOSX/data/._qasper_e.jsonl", b"\x00\x05\x16\x07")
        opened.writestr("__MACOSX/data/trec_e.jsonl", json.dumps(make_row("trec", 0)))
    assert read_rows("qasper", str(archive)).rows == [make_row("qasper", 3)]
    with user_error("not_found", archive, "trec_e.jsonl", field="longbench_dir"):
        read_rows("trec", str(archive))


def test_bad_rows_are_named_and_skipped(tmp_path: Path) -> None:
    good = json.dumps(make_row("qasper", 0, 5))
    bad = [
        "{not json",
        "[]",
        json.dumps(make_row("qasper", 1, 5) | {"answers": []}),
        json.dumps(make_row("qasper", 1, 5) | {"length": "many"}),
        json.dumps(make_row("qasper", 1, 5) | {"context": None}),
    ]
    file = tmp_path / "qasper_e.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join([good, *bad, good]).encode() + b"\n\xff\xfe\n")
    read = read_rows("qasper", str(tmp_path))
    assert len(read.rows) == 2
    assert [problem.split(":")[0] for problem in read.problems] == [f"{file}, line {n}" for n in (2, 3, 4, 5, 6, 8)]


def test_more_rows_than_the_official_data_are_refused(tmp_path: Path) -> None:
    line = json.dumps(make_row("qasper", 0, 5)) + "\n"
    file = tmp_path / "qasper_e.jsonl"
    file.write_text(line * 224)
    assert len(read_rows("qasper", str(tmp_path)).rows) == 224
    file.write_text(line * 448)
    read_rows.cache_clear()
    with user_error("data", file, 448, 224, field="longbench_dir"):
        read_rows("qasper", str(tmp_path))


def refused(dataset: str, location: str | None) -> UserError:
    with pytest.raises(UserError) as caught:
        read_rows(dataset, location)
    return caught.value


def test_places_that_cannot_be_read(tmp_path: Path) -> None:
    error = refused("qasper", str(tmp_path / "nowhere"))
    assert (error.kind, error.field) == ("not_found", "longbench_dir")
    assert str(tmp_path / "nowhere") in error.message
    error = refused("qasper", str(tmp_path))
    assert (error.kind, error.field) == ("not_found", "longbench_dir")
    assert "qasper_e.jsonl" in error.message
    (tmp_path / "qasper_e.jsonl").write_text("")
    error = refused("qasper", str(tmp_path))
    assert error.kind == "data"
    assert str(tmp_path / "qasper_e.jsonl") in error.message
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("data/trec_e.jsonl", json.dumps(make_row("trec", 0)) * 50)
    error = refused("qasper", str(archive))
    assert error.kind == "not_found"
    assert "qasper_e.jsonl" in error.message
    whole = archive.read_bytes()
    for content in (whole[: len(whole) // 2], b"no zip", whole.replace(b"word", b"WORD", 9)):
        damaged = tmp_path / f"damaged{len(content)}{content[:1]!r}.zip"
        damaged.write_bytes(content)
        error = refused("trec", str(damaged))
        assert error.kind == "data"
        assert str(damaged) in error.message
    error = refused("qasper", None)
    assert error.kind == "hub"
    assert "longbench_dir" in error.message


def test_an_archive_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    """Whichever byte it is: the checksum, the stream and the directory each fail in a way of their own."""
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("data/trec_e.jsonl", "\n".join(json.dumps(make_row("trec", index)) for index in range(50)))
    whole = archive.read_bytes()
    count = 0
    for index in range(0, len(whole), max(1, len(whole) // 300)):
        archive.write_bytes(whole[:index] + bytes([whole[index] ^ 0xFF]) + whole[index + 1 :])
        read_rows.cache_clear()
        try:
            read_rows("trec", str(archive))
        except UserError:
            count += 1
    assert count > 200


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path, words=5)

    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    error = refused("trec", str(tmp_path))
    assert error.kind == "data"
    assert all(fact in error.message for fact in ("trec_e.jsonl", "Permission denied"))


@pytest.mark.parametrize("dataset", DATASETS)
def test_prompts_are_the_official_ones(dataset: str) -> None:
    row = make_row(dataset, 0, 5) | {"context": "C {input} {context}", "input": "I {context}"}
    text = prompts.template(dataset)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DATASETS[dataset].template
    filled = prompts.prompt(dataset, row)
    assert filled.replace(row["context"], "\0").replace(row["input"], "{input}").replace("\0", "{context}") == text


def test_a_changed_prompt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "lcc", replace(DATASETS["lcc"], template="0" * 16))
    prompts.template.cache_clear()
    with pytest.raises(UserError, match="'lcc'") as caught:
        prompts.template("lcc")
    assert caught.value.kind == "dependency"
    prompts.template.cache_clear()


def test_prompt_limits_are_the_official_values() -> None:
    windows = {4096: 3500, 8192: 7500, 16384: 15500, 32768: 31500}
    assert {window: prompts.prompt_limit(window, 512) for window in windows} == windows
    assert prompts.prompt_limit(1024, 512) == 500
    assert prompts.prompt_limit(600, 128) == 472
    for window in (512, 513, 200):
        with user_error("setting", f"max_length={window}", "512 tokens"):
            prompts.prompt_limit(window, 512)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("limit", [10, 11])
def test_truncation_keeps_both_ends(bos: bool, limit: int) -> None:
    tokenizer, text = tiny_tokenizer(bos), "abcdefghijklmnopqrstuvwxyz"
    ids = tokenizer.encode(text)
    shortened, cut = prompts.truncate_middle(text, tokenizer, limit)
    assert cut
    expected = "".join(tokenizer.decode(part, skip_special_tokens=True) for part in (ids[:5], ids[-5:]))
    assert shortened == expected
    assert shortened == ("abcd" if bos else "abcde") + "vwxyz"
    assert prompts.truncate_middle(text, tokenizer, len(ids)) == (text, False)
