import json
import logging
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.longbench.official import official_scores, row_scores, score_folder, summarize, table_rows
from longshort.longbench.predictions import read_predictions, write_official_predictions
from longshort.longbench.runs import Row
from longshort.longbench.scores import BUCKETS, CATEGORIES, DATASETS
from tests.errors import assert_facts, assert_one
from tests.longbench.rows import OFFICIAL_ROWS, official_lengths

CLASSES = ["Date", "City"]
DATE = "2025-01-02T03-04-05.000006"


def row(dataset, index, length=None):
    """A right prediction for even indices, a wrong one for odd ones."""
    answer = {"trec": "Date", "passage_count": "7", "passage_retrieval_en": "Paragraph 7"}.get(dataset, "seven cats")
    return {
        "pred": answer if index % 2 == 0 else "zzz",
        "answers": [answer],
        "all_classes": CLASSES if dataset == "trec" else None,
        "length": [100, 5000, 9000][index % 3] if length is None else length,
    }


def write_lines(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), "utf-8")
    return file


def save(folder, dataset, rows=6, suffix=""):
    lines = [row(dataset, index) for index in range(rows)] if isinstance(rows, int) else rows
    return write_lines(folder / f"{dataset}{suffix}.jsonl", lines)


def official_rows(dataset, seed=0):
    """As many rows as the official data has, in its order of lengths, no two of the same length."""
    draw = random.Random(f"{dataset}{seed}")
    return [row(dataset, draw.randrange(2), length) for length in official_lengths(dataset)]


def official_means(lines):
    """Mean and standard error in percent, of right predictions and wrong ones."""
    values = [100.0 * (line["pred"] == line["answers"][0]) for line in lines]
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def save_samples(folder, dataset, lines, date=DATE, task="longshort-longbench-e-"):
    """A samples file as lm-eval 0.4.13 writes it, cut down to what is read and a little of what is not."""
    samples = [
        {
            "doc_id": index,
            "doc": {"_id": str(index), "input": "?", "context": "…", **line},
            "target": str(line["answers"]),
            "arguments": {"gen_args_0": {"arg_0": "prompt", "arg_1": {"do_sample": False}}},
            "resps": [[line["pred"]]],
            "filtered_resps": [line["pred"]],
            "filter": "none",
            "score": 0.0,
        }
        for index, line in enumerate(lines)
    ]
    for sample in samples:
        del sample["doc"]["pred"]
    return write_lines(folder / f"samples_{task}{dataset}_{date}.jsonl", samples)


@pytest.fixture
def complete(tmp_path):
    for dataset in DATASETS:
        save(tmp_path, dataset)
    return tmp_path


def test_result_json_is_the_official_one(complete, tmp_path):
    (complete / "lcc.jsonl").unlink()
    save(complete, "lcc", [row("lcc", index, length=100) for index in range(3)])
    summary = score_folder(complete, tmp_path / "out")
    text = (tmp_path / "out" / "result.json").read_text()
    result = json.loads(text)
    assert text == json.dumps(result, ensure_ascii=False, indent=4)
    assert result == summary.official
    assert set(result) == set(DATASETS)
    assert result["qasper"] == {"0-4k": 50.0, "4-8k": 50.0, "8k+": 50.0}
    assert result["lcc"] == {"0-4k": 66.67}  # buckets without rows are absent


def test_the_result_goes_into_the_folder_itself_and_again_gives_the_same(complete):
    first = score_folder(complete)
    assert score_folder(complete) == first
    assert (complete / "result.json").exists()


def test_summary_json_holds_the_tables(complete):
    summary = score_folder(complete)
    written = json.loads((complete / "summary.json").read_text())
    assert set(written) == {"datasets", "categories", "overall", "plain", "missing", "notes", "problems", "code_ratio"}
    assert written["overall"]["all"]["value"] == summary.overall["all"].value == pytest.approx(50)
    assert written["datasets"]["trec"]["0-4k"]["n"] == 2


@given(st.lists(st.floats(0, 1), min_size=1, max_size=300))
def test_official_rounding_is_that_of_numpy(values):
    official = official_scores({"qasper": {"8k+": values}})["qasper"]["8k+"]
    assert official == round(100 * np.mean(values), 2)
    assert type(official) is float


def test_official_rounding_where_python_rounds_otherwise():
    assert official_scores({"lcc": {"0-4k": [0.00065], "8k+": [0.00015]}}) == {"lcc": {"0-4k": 0.06, "8k+": 0.02}}
    assert (round(100 * 0.00065, 2), round(100 * 0.00015, 2)) == (0.07, 0.01)


SCORES = {
    "qasper": {"0-4k": [0.0, 1.0, 1.0], "8k+": [0.5, 0.25]},
    "multifieldqa_en": {"0-4k": [0.25] * 40 + [0.5]},
    "lcc": {"0-4k": [0.1, 0.3], "4-8k": [1.0]},
}


def test_means_and_standard_errors():
    summary = summarize(SCORES)

    def stderr(values):
        return 100 * statistics.stdev(values) / math.sqrt(len(values))

    qasper = summary.datasets["qasper"]
    assert qasper["all"].value == pytest.approx(55)
    assert qasper["all"].stderr == pytest.approx(stderr([0, 1, 1, 0.5, 0.25]))
    assert (qasper["all"].n, qasper["0-4k"].n) == (5, 3)
    assert "4-8k" not in qasper
    assert summary.datasets["lcc"]["4-8k"].stderr is None  # one row has none

    single = summary.categories["single-document QA"]["0-4k"]
    parts = SCORES["qasper"]["0-4k"], SCORES["multifieldqa_en"]["0-4k"]
    assert single.value == pytest.approx(100 * statistics.mean(map(statistics.mean, parts)))
    assert single.stderr == pytest.approx(math.hypot(*map(stderr, parts)) / 2)
    assert (single.n, single.missing) == (44, ())
    assert summary.categories["single-document QA"]["8k+"].missing == ("multifieldqa_en",)

    code = statistics.mean(SCORES["lcc"]["0-4k"])
    assert summary.overall["0-4k"].value == pytest.approx((single.value + 100 * code) / 2)
    assert summary.overall["0-4k"].stderr == pytest.approx(math.hypot(single.stderr, stderr(SCORES["lcc"]["0-4k"])) / 2)
    assert summary.plain["0-4k"].value == pytest.approx(
        100 * statistics.mean(map(statistics.mean, (*parts, SCORES["lcc"]["0-4k"])))
    )
    assert summary.overall["4-8k"].stderr is None


def test_what_is_missing_is_said():
    summary = summarize(SCORES)
    assert summary.missing == [name for name in DATASETS if name not in SCORES]
    assert set(summary.categories) == {"single-document QA", "code"}
    assert summary.overall["0-4k"].missing == tuple(summary.missing)
    assert set(summary.overall["8k+"].missing) == set(DATASETS) - {"qasper"}
    (problem,) = summary.problems
    assert_facts(problem, "qasper has 5 of 224", "multifieldqa_en has 41 of 150", "lcc has 3 of 300")
    assert summary.notes == ["Fewer than 30 rows: qasper 0-4k (3), qasper 8k+ (2), lcc 0-4k (2), lcc 4-8k (1)."]


def test_complete_data_needs_no_note():
    scores = {
        name: {column: [0.5] * n for column, n in zip(BUCKETS, OFFICIAL_ROWS.get(name, (100, 100, 100)), strict=True)}
        for name in DATASETS
    }
    summary = summarize(scores)
    assert summary.notes == ["Fewer than 30 rows: qasper 8k+ (24), multifieldqa_en 8k+ (13)."]
    assert (summary.missing, summary.problems) == ([], [])
    assert summary.overall["all"].n == 3668
    assert summary.overall["all"].missing == ()
    assert list(summary.categories) == list(CATEGORIES)


def test_the_order_of_rows_and_files_does_not_matter(complete):
    first = score_folder(complete).official
    for dataset in DATASETS:
        file = complete / f"{dataset}.jsonl"
        lines = file.read_text().splitlines()
        random.Random(0).shuffle(lines)
        write_lines(file, lines)
    assert score_folder(complete).official == first


def test_table_rows_are_text(complete):
    save(complete, "samsum", [row("samsum", 0, length=1)])
    sections = table_rows(score_folder(complete))
    assert [len(rows) for rows in sections.values()] == [13, 6, 2]
    assert {len(cells) for rows in sections.values() for cells in rows} == {5}
    (samsum,) = [cells for cells in sections["dataset"] if cells[0] == "samsum"]
    assert samsum == ("samsum", "100.00*†", "100.00*†", "–", "–")
    few_shot = {cells[0]: cells for cells in sections["category"]}["few-shot"]
    assert few_shot[3].endswith("*†")


def test_files_named_after_the_data_are_read(tmp_path):
    save(tmp_path, "qasper", suffix="_e")
    assert set(score_folder(tmp_path).official) == {"qasper"}


def test_the_official_name_counts_first(tmp_path, caplog):
    save(tmp_path, "qasper", 4)
    save(tmp_path, "qasper", 2, suffix="_e")
    save_samples(tmp_path, "qasper", [row("qasper", 0)])
    with caplog.at_level(logging.WARNING):
        assert len(read_predictions(tmp_path).rows["qasper"]) == 4
    assert "qasper_e.jsonl" in caplog.text
    assert f"samples_longshort-longbench-e-qasper_{DATE}.jsonl" in caplog.text


def test_the_newest_samples_are_read(tmp_path, caplog):
    save_samples(tmp_path, "repobench-p", [row("repobench-p", 1)] * 2, date="2024-12-31T00-00-00.000000")
    save_samples(tmp_path, "repobench-p", [row("repobench-p", 0)] * 3, date="2025-01-01T00-00-00.000000")
    with caplog.at_level(logging.WARNING):
        predictions = read_predictions(tmp_path)
    assert predictions.rows == {"repobench-p": [Row("seven cats", ["seven cats"], None, 100)] * 3}
    assert "2025-01-01T00-00-00.000000.jsonl" in caplog.text
    assert predictions.problems == []


def test_samples_of_other_tasks_are_skipped(tmp_path):
    save(tmp_path, "qasper")
    save_samples(tmp_path, "trec", [row("trec", 0)], task="longbench_")  # lm-eval's own, with other prompts
    write_lines(tmp_path / f"samples_longshort_perplexity_{DATE}.jsonl", [{"doc": {}}])
    predictions = read_predictions(tmp_path)
    assert list(predictions.rows) == ["qasper"]
    assert predictions.problems == []


def test_samples_become_official_files_with_the_same_scores(tmp_path):
    for dataset in DATASETS:
        lines = [row(dataset, index) for index in range(7)]
        lines[2]["pred"] = f"\n\n{lines[2]['answers'][0]}\u2028\ud800 é\n"
        save_samples(tmp_path / "samples", dataset, lines)
    assert write_official_predictions(tmp_path / "samples", tmp_path / "official") == []
    assert {file.name for file in (tmp_path / "official").iterdir()} == {f"{name}.jsonl" for name in DATASETS}
    lines = (tmp_path / "official" / "trec.jsonl").read_text("utf-8").split("\n")
    assert json.loads(lines[0]) == row("trec", 0)
    assert len(lines) == 8
    before, after = (read_predictions(tmp_path / name).rows for name in ("samples", "official"))
    assert before == after
    assert row_scores(before) == row_scores(after)


def test_the_conversion_does_not_write_over_predictions(tmp_path):
    save(tmp_path, "qasper")
    with pytest.raises(UserError, match=str(tmp_path)) as caught:
        write_official_predictions(tmp_path, tmp_path)
    assert caught.value.kind == "conflict"


def bad(**changes):
    fields = {**row("qasper", 0), **changes}
    return {name: value for name, value in fields.items() if value is not Ellipsis}


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (bad(answers=...), "`answers`"),
        (bad(answers=[]), "`answers`"),
        (bad(answers="seven cats"), "`answers`"),
        (bad(pred=...), "prediction"),
        (bad(pred=None), "prediction"),
        (bad(pred=["seven cats"]), "prediction"),
        (bad(length="100"), "`length`"),
        (bad(length=True), "`length`"),
        (bad(length=...), "`length`"),
        ('{"pred": "seven', "JSON"),
        ('{"length": ' + "1" * 5000 + "}", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[1, 2]", "JSON object"),
        ("null", "JSON object"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_scored(tmp_path, line, cause):
    file = save(tmp_path, "qasper", [row("qasper", 0), "", line, row("qasper", 3)])
    summary = score_folder(tmp_path)
    problem, incomplete = summary.problems
    assert problem.startswith(f"{file}, line 3: ")
    assert cause in problem
    assert "\n" not in problem
    assert_facts(incomplete, "qasper has 2 of 224")
    assert summary.official == {"qasper": {"0-4k": 50.0}}
    assert json.loads((tmp_path / "summary.json").read_text())["problems"] == [problem, incomplete]


@pytest.mark.parametrize(
    ("dataset", "changes", "cause"),
    [
        ("trec", {"all_classes": None}, "`all_classes`"),
        ("passage_retrieval_en", {"answers": ["7"]}, "`Paragraph N`"),
    ],
)
def test_a_row_that_its_metric_cannot_score_is_named(tmp_path, dataset, changes, cause):
    save(tmp_path, dataset, [{**row(dataset, 0), **changes}, row(dataset, 0)])
    summary = score_folder(tmp_path)
    assert cause in summary.problems[0]
    assert summary.official == {dataset: {"0-4k": 100.0}}


@pytest.mark.parametrize("changes", [{"doc": None}, {"filtered_resps": []}, {"filtered_resps": "text"}])
def test_a_bad_sample_is_named(tmp_path, changes):
    file = save_samples(tmp_path, "qasper", [row("qasper", 0)] * 2)
    good, other = map(json.loads, file.read_text().splitlines())
    write_lines(file, [good, {**other, **changes}])
    predictions = read_predictions(tmp_path)
    assert len(predictions.rows["qasper"]) == 1
    assert_facts(predictions.problems[0], str(file), "line 2", "`doc`", "`filtered_resps`")


def test_one_cause_on_many_lines_is_one_problem(tmp_path):
    save(tmp_path, "qasper", [bad(length=...)] * 8 + [bad(answers=...), row("qasper", 0)])
    problems = read_predictions(tmp_path).problems
    assert len(problems) == 2
    assert_facts(problems[0], 1, 2, 3, 4, 5, "3 more", "`length`")
    assert_facts(problems[1], "line 9", "`answers`")


def test_other_encodings(tmp_path):
    good = json.dumps(row("qasper", 0), ensure_ascii=False).encode()
    latin = json.dumps({**row("qasper", 0), "pred": "é"}, ensure_ascii=False).encode("latin-1")
    other = json.dumps(row("qasper", 1)).encode()
    (tmp_path / "qasper.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\r\n" + latin + b"\r\n" + other)
    (tmp_path / "lcc.jsonl").write_bytes((json.dumps(row("lcc", 0)) + "\n").encode("utf-16"))
    predictions = read_predictions(tmp_path)
    assert len(predictions.rows["qasper"]) == 2
    assert_one(predictions.problems, "qasper.jsonl", "line 2", "UTF-8")
    assert_one(predictions.problems, "lcc.jsonl", "line 1", "UTF-8")
    assert "lcc" not in predictions.rows


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_named(tmp_path, content):
    save(tmp_path, "qasper")
    (tmp_path / "trec.jsonl").write_text(content)
    summary = score_folder(tmp_path)
    assert summary.problems[0].startswith(str(tmp_path / "trec.jsonl"))
    assert list(summary.official) == ["qasper"]
    assert "trec" in summary.missing


def test_unknown_datasets_are_named_in_one_line(tmp_path):
    save(tmp_path, "qasper")
    save(tmp_path, "qasper-old", [row("qasper", 0)])
    save(tmp_path, "notes", [row("qasper", 0)])
    (problem,) = read_predictions(tmp_path).problems
    assert_facts(problem, "notes.jsonl", "qasper-old.jsonl")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    save(tmp_path, "qasper")
    (tmp_path / "trec.jsonl").mkdir()
    (problem,) = read_predictions(tmp_path).problems
    assert "trec.jsonl" in problem


def test_a_folder_of_bad_rows_alone_has_no_scores_but_problems(tmp_path):
    save(tmp_path, "qasper", ["x"])
    summary = score_folder(tmp_path)
    assert (summary.official, summary.overall, len(summary.problems)) == ({}, {}, 1)
    assert len(summary.missing) == 13
    assert table_rows(summary)["overall"][0] == ("mean of categories", "–", "–", "–", "–")


def test_no_folder_or_nothing_in_it(tmp_path):
    save(tmp_path / "with" / "org__model", "qasper")
    (tmp_path / "empty").mkdir()
    for folder, fact in (("nowhere", "nowhere"), ("empty", "qasper"), ("with", "org__model")):
        with pytest.raises(UserError, match=fact) as caught:
            score_folder(tmp_path / folder)
        assert caught.value.kind == "not_found"
    assert not list(tmp_path.rglob("result.json"))
