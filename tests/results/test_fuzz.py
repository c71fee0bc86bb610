"""Results files that were spoiled: each is read, left out with a note that names it, or refused with `strict`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings

from longshort.analysis import analyze
from longshort.corpora import open_corpus
from longshort.results import COLUMNS, read
from tests.analysis.results_folder import measured, results_of, save, save_folder
from tests.mutations import damaged, mutated, outcome

FIXTURES = [HealthCheck.function_scoped_fixture]
GOOD = results_of("org/model", measured(np.random.default_rng(0), 0.5), family="f", params=1000)
NAME = "results_2025-01-01T00-00-00.000000.json"


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
@example(content=json.dumps(GOOD | {"config": GOOD["config"] | {"model_revision": "\ud800"}}).encode())
@given(content=mutated(GOOD))
def test_a_file_is_read_or_named(tmp_path: Path, content: bytes) -> None:
    good, spoiled = save(tmp_path, "good", GOOD | {"model_name": "other"}), tmp_path / "spoiled" / NAME
    spoiled.parent.mkdir(exist_ok=True)
    spoiled.write_bytes(content)
    reading = read(tmp_path, every_task=True)
    assert list(reading.table) == list(COLUMNS)
    assert good.relative_to(tmp_path).as_posix() in reading.files
    assert reading.table["value"].map(math.isfinite).all()
    assert all("\n" not in note for note in reading.notes)
    _, message = outcome(read, spoiled, strict=True)
    assert not message or str(spoiled) in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("results"), families=4, members=2)


@settings(max_examples=15, deadline=None)
@given(content=mutated(GOOD))
def test_an_analysis_with_such_a_file_ends_or_says_why(folder: Path, content: bytes) -> None:
    (folder / "spoiled").mkdir(exist_ok=True)
    (folder / "spoiled" / NAME).write_bytes(content)
    analysis, message = outcome(analyze, folder)
    assert message or len(analysis.wide) >= 8


@settings(max_examples=100, deadline=None, suppress_health_check=FIXTURES)
@given(content=damaged(b'{"text": "one, 1", "n": [1]}\n{"text": "two"}\n'))
def test_a_corpus_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    documents, message = outcome(lambda: list(open_corpus(str(file))))
    if documents is None:
        assert f"{file}: line " in message
    else:
        assert all(isinstance(document.text, str) for document in documents)
