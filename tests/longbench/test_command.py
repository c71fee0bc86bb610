"""`longshort score-longbench` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from longshort.longbench.scores import DATASETS
from tests.errors import assert_facts, assert_one
from tests.lmeval.test_commands import in_process
from tests.longbench.rows import make_row


def test_score_longbench_names_what_is_wrong_and_scores_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "predictions"
    folder.mkdir()
    for name in DATASETS:
        rows = [make_row(name, index, 5) for index in range(3)]
        fields = ("answers", "all_classes", "length")
        lines = [json.dumps({"pred": row["answers"][0]} | {key: row[key] for key in fields}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    done = in_process("score-longbench", str(folder))
    assert (done.returncode, [line for line in done.stderr.splitlines() if line.startswith("longshort")]) == (0, [])
    assert json.loads((folder / "result.json").read_text())["qasper"] == {"0-4k": 100.0, "4-8k": 100.0, "8k+": 100.0}
    assert max(map(len, done.stdout.splitlines())) <= 80

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
        ("lcc.jsonl", "line 4", "UTF-8"),
        ("lcc.jsonl", "line 5", "JSON"),
        ("qasper, trec",),
    ):
        assert_one(reported, *facts)
    assert json.loads((folder / "result.json").read_text())["lcc"] == {"0-4k": 100.0, "4-8k": 100.0, "8k+": 100.0}
    assert "Traceback" not in done.stderr

    done = in_process("score-longbench", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("longshort: ")
    assert_facts(done.stderr.rstrip(), str(tmp_path), "predictions")
