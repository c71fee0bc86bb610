"""Half precision next to float32: which values are a pair, and which variant is in which dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.results import read
from longshort.results.variants import Variant
from tests.errors import assert_one
from tests.results.files import results_json, save

SETTINGS = {"seed": 0, "lengths": [64, 128], "tail_tokens": 32, "scored": {"sha256": "a" * 64}}


def run(folder: Path, dtype: str | None, value: float, date: float = 100.0, **changed: Any) -> None:
    """One checkpoint's results; `changed` is metadata, or a part of the file by its name."""
    arguments = {"pretrained": "my/run"} | ({"dtype": dtype} if dtype else {}) | changed.pop("model_args", {})
    config = {"model_dtype": changed.pop("model_dtype", None) or f"torch.{dtype}"}
    count, version = changed.pop("n", 4), changed.pop("version", 2.0)
    metrics = {"jeffreys@64,none": value, "ppl_tail@64,none": value + 1, "jeffreys_between@64-128,none": value + 2}
    data = results_json(date=date, model_args=arguments, metrics=metrics, metadata=SETTINGS | changed, **config)
    data["n-samples"] = {"longshort_perplexity": {"effective": count}}
    data["versions"] = {"longshort_perplexity": version}
    save(folder, data, f"results_{dtype}_{date}.json")


def pairs_of(folder: Path) -> dict[str, tuple[float, float]]:
    """Values in float32 and in half precision, by metric; the rest is checked."""
    table = read(folder).precisions
    assert table is not None
    assert set(table["checkpoint"]) <= {"my/run"}
    return {
        metric: (single, half)
        for metric, single, half in table[["metric", "value_float32", "value_half"]].itertuples(index=False)
    }


ALL = {"jeffreys": (1.0, 1.5), "ppl_tail": (2.0, 2.5), "jeffreys_between@64-128": (3.0, 3.5)}


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_values_in_both_dtypes_are_pairs(tmp_path: Path, half: str) -> None:
    run(tmp_path, "float32", 1.0)
    run(tmp_path, half, 1.5)
    assert pairs_of(tmp_path) == ALL
    reading = read(tmp_path)
    assert reading.precisions is not None
    assert set(reading.precisions["dtype"]) == {half}
    assert set(reading.precisions["half_checkpoint"]) == {f"my/run+dtype={half}"}
    assert reading.variants == {
        ("my/run+dtype=float32", "main"): Variant("my/run", "float32"),
        (f"my/run+dtype={half}", "main"): Variant("my/run", half),
    }
    assert not reading.notes


@pytest.mark.parametrize(("saved", "other"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_saved_dtype_is_the_one_of_auto(tmp_path: Path, saved: str, other: str) -> None:
    """Whichever of both was evaluated with dtype=auto has the name without a dtype."""
    values = {"float32": 1.0, "bfloat16": 1.5}
    run(tmp_path, None, values[saved], model_dtype=f"torch.{saved}")
    run(tmp_path, other, values[other])
    assert pairs_of(tmp_path) == ALL
    variants = read(tmp_path).variants
    assert {name: variant.dtype for (name, _), variant in variants.items()} == {
        "my/run": saved,
        f"my/run+dtype={other}": other,
    }


def test_the_newest_of_each_dtype_counts(tmp_path: Path) -> None:
    run(tmp_path, "float32", 9.0, date=1.0)
    run(tmp_path, "bfloat16", 1.5, date=2.0)
    run(tmp_path, "float32", 1.0, date=3.0)
    run(tmp_path, "bfloat16", 9.0, date=0.5)
    assert pairs_of(tmp_path) == ALL


def test_one_dtype_is_no_pair(tmp_path: Path) -> None:
    run(tmp_path, "bfloat16", 1.0)
    reading = read(tmp_path)
    assert reading.precisions is None
    assert reading.variants == {}


def test_an_unknown_dtype_is_no_pair(tmp_path: Path) -> None:
    run(tmp_path, None, 1.0, model_dtype="")
    run(tmp_path, "float32", 1.0)
    reading = read(tmp_path)
    assert reading.precisions is not None
    assert reading.precisions.empty or set(reading.precisions["dtype"]) <= {"bfloat16", "float16"}


def test_revisions_and_other_arguments_are_not_mixed(tmp_path: Path) -> None:
    run(tmp_path / "a", "float32", 1.0, model_args={"subfolder": "step1"})
    run(tmp_path / "b", "bfloat16", 1.5, model_args={"subfolder": "step2"})
    assert read(tmp_path).precisions is None
    run(tmp_path / "c", "bfloat16", 1.5, model_args={"subfolder": "step1", "attn_implementation": "eager"})
    assert pairs_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("changed", "named", "left"),
    [
        ({"seed": 1}, "seed", 0),
        ({"draws": 4}, "draws", 0),
        ({"n": 3}, "numbers of documents", 0),
        ({"version": 1.0}, "task version", 0),
        ({"scored": {"sha256": "b" * 64}}, "documents", 0),
        ({"lengths": [64, 256]}, "lengths", 1),  # other fixed targets; jeffreys@64 is of the same windows
        ({"tail_tokens": 16}, "tail_tokens", 1),
        ({"draws": 1}, None, 3),  # its default
        ({"num_docs": 100}, None, 3),  # of a corpus that has fewer
    ],
)
def test_values_that_differ_for_another_reason_are_not_compared(
    tmp_path: Path, changed: dict[str, Any], named: str | None, left: int
) -> None:
    run(tmp_path, "float32", 1.0)
    run(tmp_path, "bfloat16", 1.5, **changed)
    assert len(pairs_of(tmp_path)) == left
    notes = [note for note in read(tmp_path).notes if "float32" in note]
    if named:
        assert_one(notes, "my/run", "bfloat16", named, str(3 - left))
    else:
        assert notes == []


def test_the_table_has_its_types(tmp_path: Path) -> None:
    run(tmp_path, "float32", 1.0)
    run(tmp_path, "bfloat16", 1.5)
    table = read(tmp_path).precisions
    assert table is not None
    assert table["length"].tolist()[:1] == [64]
    assert pd.isna(table.set_index("metric").loc["jeffreys_between@64-128", "length"])
