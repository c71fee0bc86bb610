"""`longshort score-longbench` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from longshort.longbench.scores import DATASETS
from tests.errors import assert_facts, assert_one
from tests.lmeval.test_commands import in_process
from tests.longbench.test_official import official_rows, save


def test_score_longbench_names_what_is_wrong_and_scores_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in DATASETS:
        lines = [json.dumps({**row, "pred": row["answers"][0]}) for row in official_rows(name)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    done = in_process("score-longbench", str(folder))
    assert (done.returncode, [line for line in done.stderr.splitlines() if line.startswith("longshort")]) == (0, [])
    assert json.loads((folder / "result.json").read_text())["qasper"] == {"0-4k": 100.0, "4-8k": 100.0, "8k+": 100.0}
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "difflib" in done.stdout

    (folder / "qasper.jsonl").unlink()
    (folder / "trec.jsonl").write_text("")
    (folder / "musique.jsonl").write_text("{}")
    (folder / "lcc.jsonl").write_bytes((folder / "lcc.jsonl").read_bytes() + b"\n\xff\n{")
    done = in_process("score-longbench", str(folder))
    assert done.returncode == 1
    reported = [line for line in done.stderr.splitlines() if line.startswith("longshort: ")]
    for facts in (
        ("trec.jsonl",),
        ("musique",),
        ("lcc.jsonl", "line 301", "UTF-8"),
        ("lcc.jsonl", "line 302", "JSON"),
        ("qasper, trec",),
    ):
        assert_one(reported, *facts)
    assert json.loads((folder / "result.json").read_text())["lcc"] == {"0-4k": 100.0, "4-8k": 100.0, "8k+": 100.0}
    assert "Traceback" not in done.stderr

    done = in_process("score-longbench", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("longshort: ")
    assert_facts(done.stderr.rstrip(), str(tmp_path), "predictions")


def test_the_code_ratio_is_chosen_and_reported(tmp_path: Path) -> None:
    lines = [{"pred": "ababab", "answers": ["aaaaab"], "all_classes": None, "length": 100}]
    save(tmp_path, "lcc", lines)
    for ratio, score in (("difflib", 33.0), ("levenshtein", 67.0)):
        done = in_process("score-longbench", str(tmp_path), "--code-ratio", ratio)
        assert done.returncode == 1  # rows and datasets are missing
        assert ratio in done.stdout
        assert json.loads((tmp_path / "result.json").read_text()) == {"lcc": {"0-4k": score}}
        assert json.loads((tmp_path / "summary.json").read_text())["code_ratio"] == ratio
    assert in_process("score-longbench", str(tmp_path), "--code-ratio", "jaro").returncode == 2


def test_incomplete_and_repeated_rows_give_exit_code_1(tmp_path: Path) -> None:
    for name in DATASETS:
        save(tmp_path, name, official_rows(name))
    save(tmp_path, "multi_news", official_rows("multi_news")[:164])
    done = in_process("score-longbench", str(tmp_path))
    assert done.returncode == 1
    assert_one(done.stderr.splitlines(), "multi_news", 164, 294)

    save(tmp_path, "multi_news", official_rows("multi_news") * 2)
    done = in_process("score-longbench", str(tmp_path))
    assert done.returncode == 0
    assert_one(done.stderr.splitlines(), "multi_news", 588, 294)

    save(tmp_path, "multi_news", official_rows("multi_news") + official_rows("multi_news", seed=1))
    done = in_process("score-longbench", str(tmp_path))
    assert done.returncode == 1
    reported = [line for line in done.stderr.splitlines() if line.startswith("longshort: ")]
    assert_one(reported, "multi_news.jsonl", 588, 294)
    assert "multi_news" not in json.loads((tmp_path / "result.json").read_text())
