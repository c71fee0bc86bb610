"""Predictions of LongBench are told from those of LongBench-E, whose files have the same names."""

import pytest

from longshort.longbench.benchmark import LONGBENCH_ONLY, LONGBENCH_ROWS
from longshort.longbench.official import score_folder
from longshort.longbench.predictions import read_predictions
from longshort.longbench.scores import DATASETS
from tests.errors import assert_one, user_error
from tests.longbench.test_official import official_rows, row, save, save_samples

# Rows of LongBench per bucket, counted in public prediction files.
LONGBENCH_BUCKETS = {"qasper": (135, 60, 5), "2wikimqa": (90, 79, 31), "hotpotqa": (16, 41, 143)}


def longbench_rows(dataset):
    counts = LONGBENCH_BUCKETS.get(dataset, (0, 0, LONGBENCH_ROWS.get(dataset, 200)))
    starts = zip((1000, 4000, 8000), counts, strict=True)
    return [row(dataset, index % 2, start + index) for start, n in starts for index in range(n)]


def save_longbench(folder, names):
    for name in names:
        save(folder, name, longbench_rows(name))


@pytest.mark.parametrize("name", sorted(LONGBENCH_BUCKETS))
def test_the_number_of_rows_shows_it(tmp_path, name):
    save_longbench(tmp_path, [name])
    with user_error("data", tmp_path, name, 200, DATASETS[name].num_rows):
        score_folder(tmp_path)


@pytest.mark.parametrize("names", [["narrativeqa"], ["dureader", "qasper"], [*LONGBENCH_ONLY, *DATASETS]])
def test_its_own_datasets_show_it(tmp_path, names):
    save_longbench(tmp_path, names)
    with user_error("data", tmp_path, "LongBench", "LongBench-E", names[0], "--e"):
        score_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_without_length_show_it(tmp_path):
    for name in ("qasper", "trec", "lcc"):
        lines = [{key: value for key, value in line.items() if key != "length"} for line in longbench_rows(name)]
        save(tmp_path, name, lines)
    with user_error("data", tmp_path, "`length`", "qasper", "trec", "lcc"):
        score_folder(tmp_path)


def test_one_complete_dataset_shows_longbench_e(tmp_path):
    save(tmp_path, "qasper", official_rows("qasper") * 2)
    save_longbench(tmp_path, ["narrativeqa", "dureader", "hotpotqa"])
    predictions = read_predictions(tmp_path)
    assert list(predictions.rows) == ["qasper"]
    assert len(predictions.problems) == 2
    assert_one(predictions.problems, "narrativeqa.jsonl", "dureader.jsonl", "LongBench")
    assert_one(predictions.problems, "hotpotqa.jsonl", 200, 143, 100)


def test_the_dataset_that_both_have_shows_nothing(tmp_path):
    save(tmp_path, "multifieldqa_en", official_rows("multifieldqa_en"))
    assert score_folder(tmp_path).problems == []
    save_longbench(tmp_path, ["musique"])
    with user_error("data", tmp_path, "musique"):
        score_folder(tmp_path)


@pytest.mark.parametrize("dataset", ["qasper", "hotpotqa", "trec"])
def test_the_first_200_rows_of_longbench_e_are_incomplete(tmp_path, dataset):
    save(tmp_path, dataset, official_rows(dataset)[:200])
    assert_one(score_folder(tmp_path).problems, dataset, 200, DATASETS[dataset].num_rows)


def test_samples_and_files_named_e_are_of_longbench_e(tmp_path):
    save(tmp_path, "qasper", official_rows("qasper")[:5], suffix="_e")
    save_samples(tmp_path, "trec", official_rows("trec")[:5])
    save_longbench(tmp_path, ["musique"])
    predictions = read_predictions(tmp_path)
    assert list(predictions.rows) == ["qasper", "trec"]
    assert_one(predictions.problems, "musique.jsonl", "LongBench")


def test_samples_of_lm_evals_own_tasks_are_named(tmp_path):
    save_samples(tmp_path, "qasper_e", [row("qasper", 0)], task="longbench_")
    with user_error("not_found", tmp_path, "longshort_longbench_e"):
        score_folder(tmp_path)
