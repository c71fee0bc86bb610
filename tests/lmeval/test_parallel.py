"""Data parallel over two processes gives what one process gives, also where documents lack metrics."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.results.tokens import RECORD, aggregates, read_tokens
from tests.lmeval.conftest import LENGTHS, run, values
from tests.longbench.rows import write_rows

BOTH = ["longshort_perplexity", "longshort_misalignment"]
RETRIEVAL = "longshort_retrieval"
GENERATION = ["longshort-longbench-e-samsum", "longshort-longbench-e-lcc"]
# With the second sizes only the second process has documents for the longer lengths.
SIZES = [[300, 290, 280, 270, 260], [20, 300, 40, 300, 20]]


@pytest.fixture(scope="module")
def cases(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What is evaluated, with the results of two processes, which serve all cases: they take seconds to start."""
    folder = tmp_path_factory.mktemp("parallel")
    cases: list[dict[str, Any]] = []
    for index, sizes in enumerate(SIZES):
        corpus = folder / f"corpus{index}.jsonl"
        texts = [" ".join(f"{word * step % 97}" for word in range(size)) for step, size in enumerate(sizes, 3)]
        corpus.write_text("\n".join(json.dumps({"text": text[:size]}) for text, size in zip(texts, sizes, strict=True)))
        settings = {"corpus": str(corpus), "lengths": LENGTHS, "num_docs": 5, "save_tokens": True}
        cases.append({"tasks": BOTH, "metadata": settings, "tokens": str(folder / f"tokens{index}.parquet")})
    rows = write_rows(folder / "rows", words=200)
    # Three rows, each of another bucket: each process lacks what the other has.
    metadata = {"longbench_dir": str(rows), "pretrained": str(llama), "max_length": 600}
    cases.append({"tasks": GENERATION, "metadata": metadata})
    # The floor of four of five documents, two of each process.
    cases.append({"tasks": BOTH[1:], "metadata": cases[0]["metadata"], "dtype": "bfloat16"})
    retrieval = {
        "corpus": cases[0]["metadata"]["corpus"],
        "lengths": [150, 250],
        "num_docs": 5,
        "needles": 1,
        "depths": 2,
    }
    cases.append({"tasks": [RETRIEVAL], "metadata": retrieval})
    (folder / "cases.json").write_text(json.dumps([case | {"checkpoint": str(llama)} for case in cases]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", "-m", "tests.lmeval.parallel_worker"]
    done = subprocess.run(
        [*command, str(folder / "cases.json")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "results.json").read_text())
    return [case | {"found": results} for case, results in zip(cases, found, strict=True)]


@pytest.mark.parametrize("index", [0, 1])
def test_two_processes_equal_one(index: int, llama: Path, cases: list[dict[str, Any]], tmp_path: Path) -> None:
    actual = cases[index]["found"]
    expected = run(llama, BOTH, cases[index]["metadata"], log_samples=True)
    for task in BOTH:
        assert values(expected, task).keys() == values(actual, task).keys()
        for key, value in expected["results"][task].items():
            same = value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)
            assert actual["results"][task][key] == same, key
        scored, same = (results["configs"][task]["metadata"]["scored"] for results in (actual, expected))
        assert scored == same
        assert [row["doc_id"] for row in actual["samples"][task]] == [0, 1, 2, 3, 4]
    Path(tmp_path / "one.parquet").write_bytes(expected[RECORD].content)
    one, two = (read_tokens(file).frame for file in (tmp_path / "one.parquet", cases[index]["tokens"]))
    pd.testing.assert_frame_equal(one.drop(columns="between"), two.drop(columns="between"), rtol=1e-4, atol=1e-6)
    assert aggregates(read_tokens(cases[index]["tokens"])) == {
        task: pytest.approx(values(actual, task), rel=1e-5) for task in BOTH
    }


def test_two_processes_have_the_floors_of_one(llama: Path, cases: list[dict[str, Any]]) -> None:
    (task,), metadata, actual = cases[3]["tasks"], cases[3]["metadata"], cases[3]["found"]
    expected = run(llama, [task], metadata, model_args={"dtype": "bfloat16"}, log_samples=True)
    floors = [name for name in expected["results"][task] if "_floor@" in name]
    assert len(floors) == 4 * len(LENGTHS)  # with standard errors
    for name in floors:
        assert actual["results"][task][name] == pytest.approx(expected["results"][task][name], rel=1e-4)
    scored, same = (results["configs"][task]["metadata"]["scored"] for results in (actual, expected))
    assert scored == same


def test_two_processes_score_the_probes_of_one(llama: Path, cases: list[dict[str, Any]]) -> None:
    metadata, actual = cases[4]["metadata"], cases[4]["found"]
    expected = run(llama, [RETRIEVAL], metadata, log_samples=True)
    assert len(values(expected, RETRIEVAL)) == 4
    assert values(actual, RETRIEVAL) == pytest.approx(values(expected, RETRIEVAL), rel=1e-4)
    nll = [f"recall_nll@{length}" for length in metadata["lengths"]]
    rows, same = (
        [[row[name] for name in nll] for row in results["samples"][RETRIEVAL]] for results in (actual, expected)
    )
    assert len(rows) == 10
    for row, other in zip(rows, same, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    scored, other = (results["configs"][RETRIEVAL]["metadata"]["scored"] for results in (actual, expected))
    assert scored["documents"] == other["documents"]
    assert [cell["n"] for cell in scored["depths"]] == [cell["n"] for cell in other["depths"]] == [5] * 4


def test_two_processes_generate_what_one_does(llama: Path, cases: list[dict[str, Any]]) -> None:
    metadata, actual = cases[2]["metadata"], cases[2]["found"]
    arguments = {"pretrained": str(llama), "max_length": metadata["max_length"]}
    expected = run(llama, GENERATION, metadata, log_samples=True, model_args=arguments)
    for task in GENERATION:
        assert set(actual["results"][task]) == set(expected["results"][task])
        responses, same = (
            [sample["filtered_resps"] for sample in results["samples"][task]] for results in (actual, expected)
        )
        assert responses == same
        scored, same = (results["configs"][task]["metadata"]["scored"] for results in (actual, expected))
        assert scored == same
        assert scored["truncated_prompts"] == 3
