"""The comparison of two recorded folders finds what it must find; the recording itself is run by hand."""

import csv
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from tests.slow.same_numbers.compare import SECTIONS, compare, report
from tests.slow.same_numbers.inputs import DATASETS, make_inputs

VALUE = 334.2587580816216
SAMPLES = "eval/samples_longshort_perplexity_2026-11-28T05-56-52.182694.jsonl"
TABLE = "correlate/comparisons.csv"
ROWS = [{"predictor": "sce", "difference": 0.25, "difference_lo": -0.5, "note": "2 of 9 rows left out"}] * 2


def write_record(folder: Path, tree: str = "/old") -> Path:
    """One file of each kind, as `record` keeps them, and a file in every section."""
    for section in SECTIONS:
        (folder / section).mkdir(parents=True)
        (folder / section / "values.json").write_text('{"value": 1}')
    paths = {"TREE": tree, "OUTPUT": str(folder)}
    (folder / "record.json").write_text(json.dumps({"paths": paths}))
    results = {"ppl@64": VALUE, "nan": math.nan, "zero": 0.0, "date": 1.0, "task": f"{tree}/tasks/a.yaml"}
    write_json(folder / "eval/results_2026-11-28T05-56-52.182694.json", {"results": results, "names": ["a", "b"]})
    (folder / SAMPLES).write_text(json.dumps({"resps": [["left out: 3"]], "ppl@64": VALUE}) + "\n")
    (folder / "sweep/status.jsonl").write_text('{"event": "plan", "time": "05:56"}\n{"event": "failed"}\n')
    pd.DataFrame({"value": [VALUE, 2.5], "n": [3, 4]}).to_parquet(folder / "sweep/results.parquet")
    save_file({"weight": torch.tensor([1.0, 2.0])}, folder / "trained/model.safetensors")
    write_csv(folder / TABLE, ROWS)
    return folder


def write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def write_csv(file: Path, rows: list[dict[str, object]]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edit_results(folder: Path, **changes: object) -> None:
    (file,) = (folder / "eval").glob("results_*.json")
    content = json.loads(file.read_text())
    content["results"] |= changes
    write_json(file, content)


@pytest.fixture
def before(tmp_path):
    return write_record(tmp_path / "before")


@pytest.fixture
def after(tmp_path):
    return write_record(tmp_path / "after", tree="/new")


def differences(before: Path, after: Path) -> list[str]:
    return [place for section in compare(before, after) for place, _, _ in section.differences]


def test_equal_folders_have_no_difference_and_every_value_is_counted(before, after):
    sections = {section.name: section for section in compare(before, after)}
    assert differences(before, after) == []
    assert sections["trained"].compared == 2  # values.json, one tensor
    assert sections["sweep"].compared == 1 + 2 + 4  # values.json, two events, four cells
    assert (sections["eval"].compared, sections["eval"].ignored) == (1 + 4 + 2 + 2, 1)


@pytest.mark.parametrize(
    "changes", [{"ppl@64": math.nextafter(VALUE, 0)}, {"nan": 0.5}, {"zero": -0.0}, {"zero": 0}, {"task": "/new/a"}]
)
def test_one_changed_value_is_one_difference(before, after, changes):
    edit_results(after, **changes)
    assert differences(before, after) == [f"eval/results.json results {next(iter(changes))}"]


def test_one_ulp_is_found_in_every_kind_of_file(before, after):
    pd.DataFrame({"value": [math.nextafter(VALUE, 0), 2.5], "n": [3, 4]}).to_parquet(after / "sweep/results.parquet")
    weight = torch.nextafter(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    save_file({"weight": weight}, after / "trained/model.safetensors")
    write_csv(after / TABLE, [ROWS[0], ROWS[1] | {"difference": math.nextafter(0.25, 1)}])
    (after / SAMPLES).write_text(json.dumps({"resps": [["left out: 3"]], "ppl@64": math.nextafter(VALUE, 0)}) + "\n")
    assert sorted(differences(before, after)) == [
        f"{TABLE} 1 difference",
        "eval/samples_longshort_perplexity.jsonl 0 ppl@64",
        "sweep/results.parquet 0 value",
        "trained/model.safetensors weight",
    ]


def test_times_may_differ_and_so_may_the_words_of_a_sentence_but_not_its_numbers(before, after):
    edit_results(after, date=2.0)
    (after / SAMPLES).write_text(json.dumps({"resps": [["skipped: 3"]], "ppl@64": VALUE}) + "\n")
    write_csv(after / TABLE, [row | {"note": "skipped 2 of 9 rows"} for row in ROWS])
    assert differences(before, after) == []
    write_csv(after / TABLE, [row | {"note": "skipped 3 of 9 rows"} for row in ROWS])
    assert differences(before, after) == [f"{TABLE} 0 note", f"{TABLE} 1 note"]


@pytest.mark.parametrize("lacking", ["before", "after"])
def test_a_missing_file_is_a_difference(before, after, lacking):
    folder = {"before": before, "after": after}[lacking]
    (folder / "trained/model.safetensors").unlink()
    assert differences(before, after) == ["trained/model.safetensors weight"]


@pytest.mark.parametrize("lacking", ["before", "after"])
def test_a_missing_row_is_a_difference(before, after, lacking):
    write_csv({"before": before, "after": after}[lacking] / TABLE, ROWS[:1])
    assert sorted(differences(before, after)) == [f"{TABLE} 1 {column}" for column in sorted(ROWS[0])]


def test_a_section_without_values_is_a_difference(before, after):
    for folder in (before, after):
        (folder / "longbench/values.json").unlink()
    assert len(differences(before, after)) == 2


def test_only_the_columns_of_the_bootstrap_may_go_and_new_ones_are_listed(before, after):
    write_csv(after / TABLE, [{"predictor": "sce", "note": "2 of 9", "difference": 0.25, "new": 1.0}] * 2)
    sections = compare(before, after)
    assert not any(section.differences for section in sections)
    (section,) = (section for section in sections if section.name == "correlate")
    assert section.removed == {f"{TABLE}: difference_lo": 2}
    assert section.added == {f"{TABLE}: new": 2}
    write_csv(after / TABLE, [{"predictor": "sce", "note": "2 of 9", "difference_lo": -0.5}] * 2)
    assert differences(before, after) == [f"{TABLE} 0 difference", f"{TABLE} 1 difference"]


@pytest.mark.parametrize(
    ("file", "factor", "rounded", "different"),
    [
        ("comparisons.csv", 1 + 4e-16, 1, 0),
        ("comparisons.csv", 1 + 1e-12, 0, 1),
        ("correlations.csv", 1 + 4e-16, 0, 1),
    ],
)
def test_only_the_last_bits_of_the_named_columns_may_differ(before, after, file, factor, rounded, different):
    for folder, value in ((before, 0.25), (after, 0.25 * factor)):
        write_csv(folder / "correlate" / file, [{"predictor": "sce", "difference_p": value}])
    (section,) = (section for section in compare(before, after) if section.name == "correlate")
    assert (section.rounded, len(section.differences)) == (rounded, different)


def test_a_skipped_value_may_get_a_category_and_nothing_else_may(before, after):
    edit_results(before, left_out=[{"metric": "ppl@128"}])
    edit_results(after, left_out=[{"metric": "ppl@128", "kind": "length"}])
    assert differences(before, after) == []
    edit_results(after, left_out=[{"metric": "ppl@128", "why": "length"}])
    assert differences(before, after) == ["eval/results.json results left_out 0 why"]


def test_the_report_counts_and_shows_the_first_differences(before, after):
    edit_results(after, zero=1.0, nan=1.0)
    text = report(compare(before, after), show=1)
    assert "eval/results.json results nan" in text
    assert "eval/results.json results zero" not in text
    assert "1 more in eval" in text


def test_the_inputs_are_the_same_each_time(tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "status.jsonl").write_text("{}\n")
    make_inputs(tmp_path / "one", study)
    make_inputs(tmp_path / "two", study)
    files = sorted(file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file())
    assert len([file for file in files if file.suffix == ".safetensors"]) == 8
    assert len([file for file in files if file.match("longbench/*/*.jsonl")]) == 2 * len(DATASETS)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
