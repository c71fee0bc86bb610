"""The benchmark of the LongBench scorer: its predictions are scored in earnest, and unequal results are told."""

import json
import statistics
from argparse import Namespace
from pathlib import Path

import pytest
from benchmarks import longbench as benchmark

from longshort.longbench.official import row_scores
from longshort.longbench.predictions import read_predictions
from longshort.longbench.scores import BUCKETS, DATASETS

# In place of the official files, which are not ours to copy: the same calls, `SHIFT` added to every score.
EVAL = """
import json, sys
from pathlib import Path
import numpy as np
from longshort.longbench.scores import bucket, score_row
def scorer_e(dataset, predictions, answers, lengths, all_classes):
    scores = {"0-4k": [], "4-8k": [], "8k+": []}
    for prediction, right, length in zip(predictions, answers, lengths):
        scores[bucket(length)].append(score_row(dataset, prediction, right, all_classes))
    return {name: round(100 * np.mean(values) + SHIFT, 2) for name, values in scores.items()}
if __name__ == "__main__":
    folder = Path("pred_e") / sys.argv[sys.argv.index("--model") + 1]
    result = {}
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        columns = [[row[name] for row in rows] for name in ("pred", "answers", "length")]
        result[file.stem] = scorer_e(file.stem, *columns, rows[-1]["all_classes"])
    (folder / "result.json").write_text(json.dumps(result))
"""


def test_predictions_are_in_the_official_format_and_number(tmp_path):
    total = benchmark.write_predictions(tmp_path / "all")
    predictions = read_predictions(tmp_path / "all")
    assert predictions.problems == []
    assert {name: len(rows) for name, rows in predictions.rows.items()} == {
        name: dataset.num_rows for name, dataset in DATASETS.items()
    }
    assert total == sum(dataset.num_rows for dataset in DATASETS.values())
    for dataset, buckets in row_scores(predictions.rows).items():
        assert set(buckets) == set(BUCKETS)
        mean = statistics.mean(score for scores in buckets.values() for score in scores)
        assert 0.01 < mean < 0.99, dataset
    words = [len(row.prediction.split()) for row in predictions.rows["gov_report"]]
    assert 100 <= min(words) < max(words) <= 410


def test_the_same_seed_gives_the_same_files(tmp_path):
    for name in ("one", "other"):
        benchmark.write_predictions(tmp_path / name, rows=3)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


@pytest.mark.parametrize("shift", [0, 0.01])
def test_it_runs_at_a_tiny_size_and_fails_where_the_results_differ(monkeypatch, capsys, tmp_path, shift):
    def measure_here(name, arguments, side):
        with monkeypatch.context() as patch:
            patch.delitem(benchmark.sys.modules, "eval", raising=False)
            patch.setattr("sys.path", [*benchmark.sys.path])
            arguments = {key: Path(value) for key, value in arguments.items()}
            return benchmark.measure(Namespace(side=side, **arguments))

    written = []
    monkeypatch.setattr(benchmark, "run_child", measure_here)
    monkeypatch.setattr(benchmark, "PACKAGES", ("rouge",))
    monkeypatch.setattr(benchmark, "write", lambda rows, *_: written.extend(json.loads(json.dumps(rows))))
    monkeypatch.setenv("COLUMNS", "100")
    clone = tmp_path / "clone" / "LongBench"
    clone.mkdir(parents=True)
    (clone / "eval.py").write_text(f"SHIFT = {shift}\n{EVAL}")
    arguments = ["--official", str(tmp_path / "clone"), "--rows", "6", "--runs", "1"]
    if shift:
        with pytest.raises(SystemExit, match=r"qasper 8k\+"):
            benchmark.main(arguments)
    else:
        benchmark.main(arguments)
    (row,) = written
    assert (row["predictions"], row["compared"], len(row["different"])) == (78, 39, 39 if shift else 0)
    assert row["official"]["process_seconds_median"] > row["official"]["scoring_seconds_median"] > 0
    shown = capsys.readouterr().out
    assert f"{39 if shift else 0} of 39 scores differ" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_without_the_official_scorer_it_says_what_to_do(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="git clone https://github") as stopped:
        benchmark.main(["--official", str(tmp_path)])
    assert "\n" not in str(stopped.value)
    (tmp_path / "eval.py").write_text("")
    monkeypatch.setattr(benchmark, "PACKAGES", ("rouge", "no-such-package"))
    with pytest.raises(SystemExit, match="pip install no-such-package"):
        benchmark.main(["--official", str(tmp_path)])
