"""Files with the rows of several runs, or of less than one, through the scorer."""

import json
import math
import random
import statistics

import pytest

from longshort.longbench.official import score_folder
from longshort.longbench.predictions import read_predictions, write_official_predictions
from longshort.longbench.scores import DATASETS
from tests.errors import assert_facts, assert_one
from tests.longbench.test_official import DATE, official_means, official_rows, row, save, save_samples, write_lines


def shuffled(lines, seed):
    """As several processes write them."""
    return random.Random(seed).sample(lines, len(lines))


def again(lines, share=0.5, seed=1):
    """The same rows with some other predictions, as sampling gives them."""
    draw = random.Random(seed)
    return [{**line, "pred": "other"} if draw.random() < share else line for line in lines]


@pytest.mark.parametrize("dataset", ["qasper", "trec", "multifieldqa_en"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_exact_repeats_of_a_run_are_counted_once(tmp_path, dataset, times):
    lines = official_rows(dataset)
    if dataset == "multifieldqa_en":
        lines[1] = dict(lines[0])  # as in the official data, where two rows have equal answers and lengths
    mean, stderr = official_means(lines)
    save(tmp_path, dataset, [line for seed in range(times) for line in shuffled(lines, seed)])
    summary = score_folder(tmp_path)
    score = summary.datasets[dataset]["all"]
    assert score.n == len(lines)
    assert (score.value, score.stderr) == (pytest.approx(mean), pytest.approx(stderr))
    assert summary.problems == []
    repeats = [note for note in summary.notes if f"{dataset} (" in note and "once" in note]
    assert len(repeats) == (times > 1)
    if repeats:
        assert_facts(repeats[0], dataset, times * len(lines), len(lines))


def test_two_rows_three_times_are_two_of_224_rows(tmp_path):
    right, wrong = row("qasper", 0, 2000), row("qasper", 1, 2000)
    save(tmp_path, "qasper", [right, wrong] * 3)
    summary = score_folder(tmp_path)
    assert (summary.datasets["qasper"]["all"].n, summary.datasets["qasper"]["all"].stderr) == (2, pytest.approx(50))
    assert_one(summary.problems, "qasper", 2, 224)
    assert_one(summary.notes, "qasper", 6, 2, "once")


def half(lines):
    return lines[: len(lines) // 2]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param(lambda lines: lines + again(lines), id="sampling"),
        pytest.param(lambda lines: lines + again(lines, 0.01), id="almost exact"),
        pytest.param(lambda lines: lines + lines + again(lines), id="two of three exact"),
        pytest.param(lambda lines: half(lines) + lines, id="one and a half"),
        pytest.param(lambda lines: lines[:1] + lines, id="one row more"),
        pytest.param(lambda lines: half(lines) + again(half(lines)), id="half a run twice"),
        pytest.param(lambda lines: half(lines) + again(lines[:30]), id="part of half a run twice"),
        pytest.param(lambda lines: lines[100:] + lines[:60] + again(lines[:40]), id="as many rows as the data"),
        pytest.param(lambda lines: lines[100:] + lines[:90] + again(lines[:10]), id="ten rows twice"),
        pytest.param(lambda lines: [{**line, "length": 2000} for line in lines] * 2 + lines[:1], id="other lengths"),
    ],
)
@pytest.mark.parametrize("dataset", ["hotpotqa", "qasper"])
def test_rows_of_several_runs_are_not_scored(tmp_path, dataset, runs):
    lines = runs(official_rows(dataset))
    file = save(tmp_path, dataset, shuffled(lines, 0))
    save(tmp_path, "trec", official_rows("trec"))
    summary = score_folder(tmp_path)
    (problem,) = summary.problems
    assert_facts(problem, file, dataset, len(lines))
    assert list(summary.official) == ["trec"]
    assert dataset in summary.missing


def test_half_a_run_twice_is_half_a_run(tmp_path):
    lines = half(official_rows("hotpotqa"))
    mean, stderr = official_means(lines)
    save(tmp_path, "hotpotqa", lines * 2)
    summary = score_folder(tmp_path)
    score = summary.datasets["hotpotqa"]["all"]
    assert (score.value, score.stderr, score.n) == (pytest.approx(mean), pytest.approx(stderr), 150)
    assert_one(summary.problems, "hotpotqa", 150, 300)


def test_as_many_rows_of_other_lengths_are_scored_with_a_note(tmp_path):
    save(tmp_path, "qasper", [{**line, "length": line["length"] + 3000} for line in official_rows("qasper")])
    summary = score_folder(tmp_path)
    assert (summary.datasets["qasper"]["all"].n, summary.problems) == (224, [])
    assert_one(summary.notes, "qasper", "200 in 4-8k", 100)


def test_missing_rows_are_a_problem(tmp_path):
    """The first 164 rows: the data are in the order of the buckets."""
    save(tmp_path, "multi_news", official_rows("multi_news")[:164])
    save(tmp_path, "qasper", official_rows("qasper"))
    summary = score_folder(tmp_path)
    (problem,) = summary.problems
    assert_facts(problem, "multi_news", 164, 294)
    assert {name: score.n for name, score in summary.datasets["multi_news"].items()} == {
        "all": 164,
        "0-4k": 100,
        "4-8k": 64,
    }


def test_samples_are_told_apart_by_their_document(tmp_path):
    """Equal answers, lengths and predictions are no repeats there."""
    lines = [row("hotpotqa", 0, 1000 if index < 100 else 5000 if index < 200 else 9000) for index in range(300)]
    save_samples(tmp_path, "hotpotqa", lines)
    summary = score_folder(tmp_path)
    assert (summary.datasets["hotpotqa"]["all"].n, summary.problems) == (300, [])


@pytest.mark.parametrize("part", [3, 150, 300])
def test_exact_repeats_of_samples_are_counted_once(tmp_path, part):
    lines = official_rows("hotpotqa")
    file = save_samples(tmp_path, "hotpotqa", lines)
    written = file.read_text().splitlines()
    write_lines(file, written + written[:part])
    summary = score_folder(tmp_path)
    score = summary.datasets["hotpotqa"]["all"]
    assert (score.n, score.stderr) == (300, pytest.approx(official_means(lines)[1]))
    assert_one(summary.notes, "hotpotqa", 300 + part, 300)
    assert summary.problems == []


def test_samples_with_two_predictions_of_a_row_are_not_scored(tmp_path):
    file = save_samples(tmp_path, "hotpotqa", official_rows("hotpotqa"))
    written = file.read_text().splitlines()
    other = json.loads(written[0])
    other["filtered_resps"] = ["another"]
    write_lines(file, [*written, other])
    predictions = read_predictions(tmp_path)
    assert predictions.rows == {}
    assert_facts(predictions.problems[0], file, 301, 300)


def test_samples_with_a_limit_are_incomplete(tmp_path):
    save_samples(tmp_path, "hotpotqa", official_rows("hotpotqa")[:10])
    assert_one(score_folder(tmp_path).problems, "hotpotqa", 10, 300)


def test_rows_with_an_id_are_told_apart_by_it(tmp_path):
    lines = [row("hotpotqa", 0, 1000) | {"_id": str(index)} for index in range(40)]
    save(tmp_path, "hotpotqa", lines + lines[:7])
    summary = score_folder(tmp_path)
    assert summary.datasets["hotpotqa"]["all"].n == 40


def test_the_conversion_writes_one_run(tmp_path):
    lines = official_rows("qasper")
    save(tmp_path / "pred", "qasper", lines * 2)
    assert write_official_predictions(tmp_path / "pred", tmp_path / "out") == []
    assert [json.loads(line) for line in (tmp_path / "out" / "qasper.jsonl").read_text().splitlines()] == lines


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("kind", ["_e", "samples"])
def test_two_files_of_a_dataset_must_have_the_same_predictions(tmp_path, same, kind):
    lines = official_rows("qasper")
    file = save(tmp_path, "qasper", lines)
    others = lines if same else again(lines, 0.01)
    if kind == "samples":
        other = save_samples(tmp_path, "qasper", others)
    else:
        other = save(tmp_path, "qasper", others, suffix="_e")
    predictions = read_predictions(tmp_path)
    assert len(predictions.rows["qasper"]) == 224
    assert len(predictions.problems) == (not same)
    if not same:
        assert_facts(predictions.problems[0], file, other)


def test_older_samples_may_differ(tmp_path):
    save_samples(tmp_path, "qasper", official_rows("qasper")[:5], date="2024-12-31T00-00-00.000000")
    save_samples(tmp_path, "qasper", official_rows("qasper"), date=DATE)
    assert score_folder(tmp_path).problems == []


def test_standard_error_of_the_mean_of_repeated_datasets(tmp_path):
    by_dataset = {name: official_rows(name) for name in DATASETS}
    for name, lines in by_dataset.items():
        save(tmp_path, name, lines * 3)
    summary = score_folder(tmp_path)
    errors = [official_means(lines)[1] for lines in by_dataset.values()]
    means = [official_means(lines)[0] for lines in by_dataset.values()]
    assert summary.plain["all"].value == pytest.approx(statistics.mean(means))
    assert summary.plain["all"].stderr == pytest.approx(math.hypot(*errors) / 13)
    assert (summary.plain["all"].n, summary.problems, summary.missing) == (3668, [], [])
