"""The reader of token files: what it refuses, and the results that a file belongs to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longshort.results.tokens import (
    METADATA,
    RECORD,
    SCHEMA,
    TokenFile,
    read_tokens,
    sha256_of,
    token_file_of,
    write_tokens,
)
from tests.errors import assert_error, user_error

ABOUT = {"format": 1, "longshort": "0.2", "tasks": [], "special_tokens": [], "settings": {"lengths": [8]}}


def content(rows: int = 500, seed: int = 0, schema: pa.Schema = SCHEMA, **about: Any) -> bytes:
    """A token file, of which each column has a value of its type."""
    values = {name: [None] * rows for name in schema.names} | {"nll": [(i * (seed + 7)) % 101 / 7 for i in range(rows)]}
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema) as writer:
        writer.write_table(pa.Table.from_pydict(values, schema=schema))
        writer.add_key_value_metadata({METADATA: json.dumps(ABOUT | about).encode()})
    return sink.getvalue().to_pybytes()


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """A token file and the results that name it."""
    return save(tmp_path, "one", content())


def save(folder: Path, name: str, data: bytes, rows: int = 500) -> tuple[Path, Path]:
    file, results = folder / f"tokens_{name}.parquet", folder / f"results_{name}.json"
    record, problem = write_tokens(TokenFile(data, rows), file)
    assert problem is None
    results.write_text(json.dumps({"results": {}, RECORD: record}))
    return file, results


def test_a_file_and_its_results(run: tuple[Path, Path]) -> None:
    file, results = run
    assert token_file_of(results) == file
    for given in (None, results, str(results)):
        tokens = read_tokens(file, given)
        assert len(tokens.frame) == 500
        assert tokens.lengths == [8]
    record = json.loads(results.read_text())[RECORD]
    assert record == {"file": file.name, "sha256": sha256_of(file), "rows": 500}


def test_a_file_of_another_run_is_refused(run: tuple[Path, Path], tmp_path: Path) -> None:
    file, results = run
    (tmp_path / "b").mkdir()
    other, of_other = save(tmp_path / "b", "two", content(seed=1))
    with user_error("conflict", file.name, results.name):
        read_tokens(other, results)
    file.write_bytes(other.read_bytes())
    for given in (None, results):  # next to its results it is checked in any case
        with user_error("conflict", file, results.name):
            read_tokens(file, given)
    with user_error("conflict", "tokens_two.parquet", file.name):
        read_tokens(file, of_other)
    results.unlink()
    assert len(read_tokens(file).frame) == 500  # copied somewhere else, nothing says what it should be


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("has_results", [True, False])
def test_a_file_that_is_cut_off(share: float, has_results: bool, run: tuple[Path, Path]) -> None:
    file, results = run
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    if not has_results:
        results.unlink()
    with user_error("data", file):
        read_tokens(file)


def test_bytes_that_changed_inside(run: tuple[Path, Path]) -> None:
    file, results = run
    data = bytearray(file.read_bytes())
    data[100:160] = bytes(60)
    file.write_bytes(data)
    with user_error("conflict", file, results.name):
        read_tokens(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    with user_error("not_found", file):
        read_tokens(file)
    with user_error("data", tmp_path):
        read_tokens(tmp_path)
    file.write_text('{"results": {}}')
    with user_error("data", file):
        read_tokens(file)
    pq.write_table(pa.table({"nll": [1.0]}), file)
    with user_error("data", file):
        read_tokens(file)
    file.write_bytes(content(format=2))
    with user_error("data", file, "format 2", "longshort 0.2"):
        read_tokens(file)
    file.write_bytes(content(schema=SCHEMA.remove(SCHEMA.get_field_index("jeffreys"))))
    with user_error("data", file, "jeffreys"):
        read_tokens(file)
    file.write_bytes(content(schema=SCHEMA.set(SCHEMA.get_field_index("nll"), pa.field("nll", pa.float64()))))
    with user_error("data", file):
        read_tokens(file)


def test_results_without_token_file(tmp_path: Path, run: tuple[Path, Path]) -> None:
    file, _ = run
    results = tmp_path / "results_two.json"
    for record in ({}, {RECORD: None}, {RECORD: []}, {RECORD: {"file": 3}}):
        results.write_text(json.dumps(record))
        with user_error("data", results, "--save-tokens"):
            token_file_of(results)
        with user_error("data", results):
            read_tokens(file, results)
    (tmp_path / "results_three.json").write_text("{")  # next to the file: not its results
    assert len(read_tokens(file).frame) == 500


def test_a_record_names_a_file_in_its_own_folder(tmp_path: Path) -> None:
    results = tmp_path / "results_x.json"
    results.write_text(json.dumps({RECORD: {"file": "../../etc/passwd", "sha256": "", "rows": 1}}))
    assert token_file_of(results) == tmp_path / "passwd"


def test_outdated_results_keep_their_token_file(run: tuple[Path, Path], tmp_path: Path) -> None:
    file, results = run
    outdated = results.rename(tmp_path / "outdated_one.json")
    assert token_file_of(outdated) == file
    moved = file.rename(tmp_path / f"outdated_{file.name}")
    assert token_file_of(outdated) == moved
    assert len(read_tokens(moved).frame) == 500
    moved.write_bytes(content(seed=3))
    with user_error("conflict", moved, outdated.name):
        read_tokens(moved)


def test_a_file_that_cannot_be_written_is_reported_after_the_results(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    record, problem = write_tokens(TokenFile(b"x", 1), tmp_path / "file" / "tokens.parquet")
    assert record is None
    assert_error(problem, "unwritable", tmp_path / "file" / "tokens.parquet")
    assert write_tokens(None, tmp_path / "tokens.parquet") == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_reading_needs_no_torch() -> None:
    program = "import sys, longshort.results.tokens; assert not {'torch', 'lm_eval', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
