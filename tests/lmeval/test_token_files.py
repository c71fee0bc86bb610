"""Token files: every row once more from the windows, one token at a time."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from longshort.corpora import Document
from longshort.lmeval.token_files import token_file
from longshort.lmeval.token_values import TaskValues, WindowValues, with_all_draws
from longshort.results.tokens import SCHEMA, Tokens, aggregates, read_tokens
from longshort.settings import EvalSettings
from longshort.testing import tiny_tokenizer
from tests.lmeval.test_documents import Model
from tests.lmeval.windows import random_windows

PERPLEXITY, MISALIGNMENT = "longshort_perplexity", "longshort_misalignment"
LENGTHS = (8, 16, 32)
TARGETS = 3
WORDS = ["the", "thin", "père", "日本", "and", "in", "🙂", "x²"]


def texts(count: int, words: int = 30) -> list[str]:
    return [" ".join(random.Random(d).choices(WORDS, k=words)) for d in range(count)]


class Run:
    """A run over some documents, and what it makes of them."""

    def __init__(self, *, bos: bool = False, sizes: Sequence[int] = (99, 99), **options: Any) -> None:
        self.lm = Model(tiny_tokenizer(bos))
        self.special = [1] if bos else []
        self.settings = EvalSettings(lengths=LENGTHS, tail_tokens=TARGETS, save_tokens=True, corpus="builtin")
        self.documents = {d: Document(f"book {d}", text[: sizes[d]]) for d, text in enumerate(texts(len(sizes)))}
        self.tokens = {
            d: (self.special + self.lm.tokenizer(document.text, add_special_tokens=False)["input_ids"])[:33]
            for d, document in self.documents.items()
        }
        self.windows = {
            d: random_windows(tokens, LENGTHS, num_targets=TARGETS, num_special=len(self.special), seed=d, **options)
            for d, tokens in self.tokens.items()
        }

    def task(self, name: str) -> TaskValues:
        corpus = {"source": "corpus.jsonl", "sha256": "abc"}
        return TaskValues(name, self.settings, {"pretrained": "m"}, corpus, None, self.documents, self.windows)

    def read(self, folder: Path, *tasks: str) -> Tokens:
        made = token_file(self.lm, [self.task(task) for task in tasks or (PERPLEXITY, MISALIGNMENT)])
        (folder / "tokens.parquet").write_bytes(made.content)
        tokens = read_tokens(folder / "tokens.parquet")
        assert len(tokens.frame) == made.rows
        return tokens


def expected_rows(run: Run, d: int, window: WindowValues, draw: int) -> Iterator[dict[str, Any]]:
    shorter = window.shorter[draw] if window.shorter else None
    end, count = window.first + len(window.targets) - 1, len(window.targets)
    for k in range(count):
        from_end = count - 1 - k
        shared = -1 if shorter is None else len(shorter.jeffreys) - 1 - from_end
        if draw and shared < 0:
            continue
        row = {"document": d, "name": f"book {d}", "position": end - from_end, "token": window.targets[k]}
        row |= {"window_start": window.start, "length": window.length, "draw": draw}
        row |= {"nll": window.nll[k], "entropy": window.entropy[k], "is_top": window.is_top[k]}
        is_fixed = window.between is not None and from_end < TARGETS
        row |= {"fixed_target": is_fixed, "between": None}
        if is_fixed and draw == 0:
            row["between"] = [float(with_length[TARGETS - 1 - from_end]) for with_length in window.between]
        names = ("shorter_length", "entropy_short", "jeffreys", "js", "agreement")
        row |= dict.fromkeys(names, math.nan) | {"in_range": False}
        if shared >= 0:
            values = (shorter.entropy, shorter.jeffreys, shorter.js, shorter.agreement)
            row |= dict(zip(names, [shorter.length, *(value[shared] for value in values)], strict=True))
            row["in_range"] = window.length - from_end >= window.length / 2 <= shorter.length - from_end
        yield row


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("draws", [1, 3])
def test_every_row_is_a_scored_token_of_a_window(bos: bool, draws: int, tmp_path: Path) -> None:
    run = Run(bos=bos, draws=draws, sizes=(99, 40))
    frame = run.read(tmp_path).frame
    rows = [
        row
        for d, windows in run.windows.items()
        for window in sorted(windows, key=lambda window: (window.length, window.start))
        for draw in range(max(1, len(window.shorter)))
        for row in expected_rows(run, d, window, draw)
    ]
    assert list(frame.columns) == SCHEMA.names
    names = list(rows[0])
    actual = frame[names].astype({"name": str}).to_dict("list")
    for name in names:
        column = [row[name] for row in rows]
        if name == "between":
            assert [None if row is None else [float(value) for value in row] for row in actual[name]] == column
        else:
            np.testing.assert_array_equal(actual[name], column, err_msg=name)
    assert not frame["position"].isin(range(max(1, len(run.special)))).any()
    assert frame["in_range"].any()
    assert frame["shorter_length"].isna().any()


@pytest.mark.parametrize("bos", [False, True])
def test_the_pieces_of_a_window_make_the_text_of_the_document(bos: bool, tmp_path: Path) -> None:
    run = Run(bos=bos)
    tokens = run.read(tmp_path)
    frame = tokens.frame
    window = frame[(frame["window_start"] == 0) & (frame["length"] == 32) & (frame["draw"] == 0)]
    for d, document in run.documents.items():
        rows = window[window["document"] == d]
        text = rows["text"].str.cat()
        first = tokens.metadata["first_texts"][str(d)]
        assert document.text.startswith(first + text)
        assert bool(first) == (not bos and document.text[0].isascii())  # without BOS it is not scored
        assert len(text) > 15
        assert rows["token"].tolist() == run.tokens[d][1:]
        assert rows["num_bytes"].sum() == pytest.approx(len(text.encode()), abs=3)
        assert (rows["text"] == "").any()


def mean(values: Any) -> float:
    values = [float(value) for value in values]
    return sum(values) / len(values)


def expected_aggregates(run: Run, pass_per_length: bool) -> dict[str, dict[str, float]]:
    """From the windows, one document and one token at a time."""
    values: dict[str, list[float]] = {}
    skipped = max(1, len(run.special)) - 1

    def add(name: str, value: float) -> None:
        values.setdefault(name, []).append(value)

    def num_bytes(tokens: list[int]) -> float:
        names = run.lm.tokenizer.convert_ids_to_tokens(tokens)
        return sum(map(len, names))  # of a byte-level tokenizer

    for d, windows in run.windows.items():
        tokens = run.tokens[d]
        for length in LENGTHS:
            if length <= len(tokens) - 1:
                starts = {window.length: window for window in windows if window.start == 0}
                window = starts[length if pass_per_length else max(starts)]
                nll = window.nll[: length - 1 - skipped]
                add(f"ppl@{length}", mean(nll))
                add(f"bpb@{length}", mean(nll) * len(nll) / math.log(2) / num_bytes(tokens[1 + skipped : length]))
        ending = {window.length: window for window in windows if window.start + window.length == len(tokens) - 1}
        for length, window in ending.items():
            parts: dict[str, list[float]] = {}
            for shorter in window.shorter:
                shared = len(shorter.jeffreys)
                entropy = window.entropy[-shared:].astype(float) + shorter.entropy.astype(float)
                sce = entropy + shorter.jeffreys
                inside = [k for k in range(shared) if shorter.length - k >= length / 2]  # k from the end
                by_name = {"sce": sce, "entropy": entropy, "jeffreys": shorter.jeffreys}
                by_name |= {"js": shorter.js, "agreement": shorter.agreement}
                for name, column in by_name.items():
                    parts.setdefault(name, []).append(mean(column[-1 - k] for k in inside))
                parts.setdefault("sce_last", []).append(float(sce[-1]))
                parts.setdefault("sce_overlap", []).append(mean(sce))
            for name, of_draws in parts.items():
                add(f"{name}@{length}", mean(of_draws))
            if window.between is not None:
                nll = window.nll[-TARGETS:]
                add(f"ppl_tail@{length}", mean(nll))
                add(f"bpb_tail@{length}", mean(nll) * TARGETS / math.log(2) / num_bytes(tokens[-TARGETS:]))
                add(f"accuracy_tail@{length}", mean(window.is_top[-TARGETS:]))
        for first, second in combinations_with_replacement(LENGTHS, 2):
            if ending.keys() >= {first, second} and ending[first].between is not None:
                jeffreys = mean(ending[first].between[LENGTHS.index(second)]) if first < second else 0.0
                entropy = mean(ending[first].entropy[-TARGETS:]) + mean(ending[second].entropy[-TARGETS:])
                add(f"sce_between@{first}-{second}", entropy + jeffreys)
                if first < second:
                    add(f"jeffreys_between@{first}-{second}", jeffreys)
    found: dict[str, dict[str, float]] = {PERPLEXITY: {}, MISALIGNMENT: {}}
    for name, of_documents in values.items():
        is_perplexity = name.startswith(("ppl", "bpb", "accuracy")) or "between" in name
        value = math.exp(mean(of_documents)) if name.startswith("ppl") else mean(of_documents)
        found[PERPLEXITY if is_perplexity else MISALIGNMENT][name] = value
    return found


# ASCII: there the bytes of a slice of tokens need no share of a character.
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("pass_per_length", [False, True])
@pytest.mark.parametrize("draws", [1, 2])
def test_aggregates_from_rows(
    bos: bool, pass_per_length: bool, draws: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.lmeval.test_token_files.WORDS", ["the", "thin", "and", "in"])
    run = Run(bos=bos, pass_per_length=pass_per_length, draws=draws, sizes=(99, 20, 99, 12))
    assert [len(tokens) for tokens in run.tokens.values()][::2] == [33, 33]
    found = aggregates(run.read(tmp_path))
    expected = expected_aggregates(run, pass_per_length)
    for task in (PERPLEXITY, MISALIGNMENT):
        assert found[task] == pytest.approx(expected[task], rel=1e-5)
    assert len(found[PERPLEXITY]) == 3 * 5 + 6 + 3
    assert len(found[MISALIGNMENT]) == 3 * 7


def test_tasks_that_did_not_run_have_no_aggregates(tmp_path: Path) -> None:
    run = Run()
    assert set(aggregates(run.read(tmp_path, MISALIGNMENT))) == {MISALIGNMENT}
    assert set(aggregates(run.read(tmp_path, PERPLEXITY))) == {PERPLEXITY}


def test_a_document_with_a_value_that_is_not_finite_has_no_aggregate(tmp_path: Path) -> None:
    run, same = Run(), Run()
    for window in run.windows[0]:
        window.nll[-1] = math.nan
        for shorter in window.shorter:
            shorter.jeffreys[-1] = math.inf
    del same.windows[0], same.documents[0]
    found, expected = (aggregates(each.read(tmp_path)) for each in (run, same))
    for metric in ("ppl_tail@16", "bpb_tail@32"):
        assert found[PERPLEXITY][metric] == expected[PERPLEXITY][metric]
    assert found[PERPLEXITY]["ppl@32"] != expected[PERPLEXITY]["ppl@32"]  # its last token belongs to no prefix
    for metric in ("jeffreys@16", "sce@32", "sce_last@8"):
        assert found[MISALIGNMENT][metric] == expected[MISALIGNMENT][metric]
    assert found[MISALIGNMENT]["entropy@16"] != expected[MISALIGNMENT]["entropy@16"]


def test_a_context_that_was_drawn_twice_counts_twice() -> None:
    (window,) = random_windows(range(9), (8,), num_targets=3, draws=3, seed=5)
    first, second, third = window.shorter
    assert len({first.length, second.length, third.length}) == 3
    drawn = [second.length, first.length, second.length]
    (found,) = with_all_draws([replace(window, shorter=(second, first))], {8: drawn})
    assert found.shorter == (second, first, second)
    (found,) = with_all_draws([replace(window, shorter=())], {8: drawn})
    assert found.shorter == ()


def test_the_metadata_describe_the_run_and_values_are_compressed_float32(tmp_path: Path) -> None:
    run = Run(bos=True)
    metadata = run.read(tmp_path).metadata
    assert metadata["special_tokens"] == [1]
    assert metadata["settings"] == run.settings.to_metadata()
    assert metadata["settings"]["lengths"] == list(LENGTHS)
    assert metadata["corpus"] == {"source": "corpus.jsonl", "sha256": "abc"}
    assert metadata["model"] == {"pretrained": "m"}
    assert metadata["tasks"] == [PERPLEXITY, MISALIGNMENT]
    with pq.ParquetFile(tmp_path / "tokens.parquet") as file:
        assert file.num_row_groups == 2
        group = file.metadata.row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        assert {column.compression for column in columns} == {"ZSTD"}
        physical = {column.path_in_schema: column.physical_type for column in columns}
    values = ("nll", "entropy", "entropy_short", "jeffreys", "js", "agreement", "num_bytes")
    assert {physical[name] for name in values} == {"FLOAT"}


def test_pandas_reads_it_without_longshort(tmp_path: Path) -> None:
    run = Run()
    frame = run.read(tmp_path).frame
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tokens.parquet"), frame)


def test_one_document_is_read_on_its_own(tmp_path: Path) -> None:
    run = Run()
    everything = run.read(tmp_path).frame
    one = read_tokens(tmp_path / "tokens.parquet", document=1, columns=["position", "nll"]).frame
    expected = everything[everything["document"] == 1][["position", "nll"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, expected)
    assert len(read_tokens(tmp_path / "tokens.parquet", document=7).frame) == 0


def peak_of(num_docs: int, draws: int) -> tuple[int, int]:
    """Bytes of Python and numpy at most, and rows; Arrow's own buffers are as large as the columns of one document."""
    lm, settings = Model(tiny_tokenizer()), EvalSettings(lengths=(64, 2048), save_tokens=True)
    documents = {d: Document(f"book {d}", " ".join(["the", "thin", f"{d}"] * 1000)) for d in range(num_docs)}
    tokens = lm.tokenizer(documents[0].text)["input_ids"][:2049]
    windows = {d: random_windows(tokens, (64, 2048), num_targets=32, draws=draws) for d in documents}
    values = TaskValues(PERPLEXITY, settings, {}, {}, None, documents, windows)
    tracemalloc.start()
    made = token_file(lm, [values])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - len(made.content), made.rows


def test_memory_is_of_one_document_and_of_arrays() -> None:
    one, rows = peak_of(1, 1)
    several, _ = peak_of(5, 1)
    assert several < 1.5 * one
    drawn, rows_drawn = peak_of(1, 9)
    assert rows_drawn > 3 * rows
    assert drawn - one < 16 * (rows_drawn - rows)  # a Python object for each row takes more
