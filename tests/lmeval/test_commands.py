"""The stock lm_eval command and `longshort eval` as a user runs them; wrong input without a process for each."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from longshort.cli import main
from longshort.lmeval.task_folder import tasks_folder
from longshort.results.tokens import read_tokens, token_file_of
from tests.lmeval.conftest import values

BOTH = ["longshort_perplexity", "longshort_misalignment"]
RETRIEVAL = "longshort_retrieval"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )


def in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`longshort` without the seconds that a process of its own takes to import torch."""
    logger, stdout, stderr = logging.getLogger("longshort"), io.StringIO(), io.StringIO()
    handlers = list(logger.handlers)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        patch.setattr(sys, "argv", ["longshort", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    logger.handlers = handlers
    return subprocess.CompletedProcess(arguments, int(end.value.code or 0), stdout.getvalue(), stderr.getvalue())


def stock(model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    include = ["--include_path", str(tasks_folder()), "--tasks", "longshort_*"]
    return command("lm_eval", "run", "--model", model, *include, *arguments)


def only_result(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("results_*.json")
    return json.loads(file.read_text())


def test_longshort_eval_writes_what_stock_lm_eval_writes(llama_bos: Path, corpus: Path, tmp_path: Path) -> None:
    metadata = {"corpus": str(corpus), "lengths": [16, 32], "num_docs": 4, "train_length": 32, "save_tokens": True}
    done = stock(
        "hf",
        *["--model_args", f"pretrained={llama_bos},dtype=float32", "--device", "cpu"],
        *["--metadata", json.dumps(metadata), "--output_path", str(tmp_path / "stock"), "--log_samples"],
        *["--batch_size", "auto"],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "|ppl@32" in done.stdout.replace(" ", "")
    assert "|±|" in done.stdout.replace(" ", "")
    ours = in_process(
        *["eval", str(llama_bos), "--corpus", str(corpus), "--lengths", "16,32", "--num-docs", "4"],
        *["--train-length", "32", "--dtype", "float32", "--device", "cpu", "-o", str(tmp_path / "ours")],
        *["--log-samples", "--save-tokens"],
    )
    assert ours.returncode == 0, ours.stderr[-3000:]
    assert "sce" in ours.stdout
    assert "bootstrapping" not in ours.stdout
    expected, actual = only_result(tmp_path / "stock"), only_result(tmp_path / "ours")
    assert actual.keys() == expected.keys()
    for task in BOTH:
        assert values(actual, task)
        assert actual["results"][task] == pytest.approx(expected["results"][task])
        scored = [results["configs"][task]["metadata"]["scored"] for results in (actual, expected)]
        assert scored[0] == scored[1]
    assert actual["task_hashes"] == {task: expected["task_hashes"][task] for task in BOTH}
    assert not values(expected, RETRIEVAL), "too short for its needles, which the other tasks do not mind"
    files = [token_file_of(next((tmp_path / who).rglob("results_*.json"))) for who in ("ours", "stock")]
    assert read_tokens(files[0]).frame.equals(read_tokens(files[1]).frame)
    assert len(read_tokens(files[0]).frame) == expected["longshort_tokens"]["rows"] > 100
    names = [{file.name.rpartition("_")[0] for file in (tmp_path / who).rglob("*.json*")} for who in ("ours", "stock")]
    assert names[0] == names[1] - {f"samples_{RETRIEVAL}"}
    for task in BOTH:
        lines = [next((tmp_path / who).rglob(f"samples_{task}_*")).read_text("utf-8") for who in ("ours", "stock")]
        assert [json.loads(line) for line in lines[0].splitlines()] == [
            json.loads(line) for line in lines[1].splitlines()
        ]


def test_stock_lm_eval_reports_an_error_on_one_line(corpus: Path) -> None:
    done = stock("dummy", "--metadata", json.dumps({"corpus": str(corpus), "lengths": [16]}))
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("longshort: ")]
    assert len(lines) == 1
    assert "longshort_misalignment" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["eval", "./no-such-folder", "--corpus", "builtin"], 1, ["./no-such-folder"]),
        (["eval", "LLAMA", "--corpus", "missing.txt"], 1, ["'missing.txt'"]),
        (["eval", "LLAMA", "--corpus", "pg19"], 1, ["builtin"]),
        (["eval", "LLAMA", "--corpus", "builtin", "--tasks", "longshort_magic"], 1, ["'longshort_magic'"]),
        (["eval", "LLAMA", "--corpus", "builtin", "--lengths", "12,many"], 2, ["lengths", "many"]),
        (["eval", "LLAMA", "--lengths", "16", "--tail-tokens", "16"], 2, ["tail", "16"]),
        (["eval", "LLAMA", "--limit", "0"], 2, ["limit", "0"]),
        (["eval", "LLAMA", "--limit", "nan"], 2, ["limit", "nan"]),
        (["eval", "LLAMA", "--tasks", ","], 2, ["tasks"]),
        (["eval", "LLAMA", "--model-args", "max_length"], 2, ["max_length", "KEY=VALUE"]),
        (["eval", "LLAMA", "--dtype", "float7"], 2, ["float7", "float32", "bfloat16"]),
        (["eval", "LLAMA", "--batch-size", "auto:x"], 2, ["auto:x"]),
        (["eval", "LLAMA", "--corpus", "CORPUS", "--lengths", "16", "--device", "cuda:7"], 1, ["'cuda:7'"]),
        (["eval", "LLAMA", "--corpus", "CORPUS", "--lengths", "100000", "--num-docs", "2"], 1, BOTH),
        (["eval", "BROKEN", "--corpus", "CORPUS", "--lengths", "16"], 1, ["BROKEN"]),
        (["eval", "LACKING", "--corpus", "CORPUS", "--lengths", "16"], 1, ["LACKING", "lm_head.weight"]),
        (["eval", "LLAMA", "--corpus", "CORPUS", "-o", "/proc/nowhere"], 1, ["/proc/nowhere"]),
        (["eval", "LLAMA", "--batch-size", "some"], 2, ["some"]),
        (["evaluate"], 2, ["evaluate"]),
    ],
)
def test_wrong_input_is_reported_on_one_line_with_its_exit_code(
    arguments: list[str], code: int, facts: list[str], llama: Path, corpus: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((llama / "config.json").read_text())
    (broken / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes()[:500])
    lacking = tmp_path / "lacking"
    shutil.copytree(llama, lacking)
    weights = load_file(lacking / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    paths = {"LLAMA": str(llama), "CORPUS": str(corpus), "BROKEN": str(broken), "LACKING": str(lacking)}
    arguments = [paths.get(argument, argument) for argument in arguments]
    if arguments[0] == "eval" and "-o" not in arguments:
        arguments += ["-o", str(tmp_path / "out")]
    done = in_process(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    text = " ".join(done.stderr.replace("│", " ").split())
    for fact in facts:
        assert paths.get(fact, fact) in text
    if code == 1:
        assert sum(line.startswith("longshort: ") for line in done.stderr.splitlines()) == 1


def test_a_process_ends_with_the_same_line_and_code(tmp_path: Path) -> None:
    arguments = ["eval", "./no-such-folder", "--corpus", "builtin", "-o", str(tmp_path)]
    done, same = command("longshort", *arguments), in_process(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, same.stdout, same.stderr)


def test_ctrl_c_is_one_line_and_its_usual_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("longshort.lmeval.task_folder.tasks_folder", interrupt)
    done = in_process("tasks")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.startswith("longshort: ")
    assert done.stderr.count("\n") == 1


def test_help_and_tasks() -> None:
    done = command("longshort", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("eval", "tasks", "train", "demo"))
    done = command("longshort", "tasks")
    assert Path(done.stdout.strip(), "longshort_perplexity.yaml").is_file()
