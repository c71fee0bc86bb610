"""Sweeps of tiny checkpoints, through the command line, on both engines."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from longshort.lmeval.evaluate import evaluate_checkpoint
from longshort.results.tokens import aggregates, read_tokens, token_file_of
from tests.errors import contains
from tests.sweep.conftest import events, results, sweep, write_manifest

TASKS = ("longshort_perplexity", "longshort_misalignment")
BROKEN = {
    "missing-weights": "broken",
    "corrupt": "broken",
    "nan": "non_finite",
    "brings-code": "no_trust_remote_code",
    "nowhere": "not_found",
    "short": "length",
    "slow": "timeout",
}


@pytest.fixture(scope="module")
def run(place: Path) -> subprocess.CompletedProcess[str]:
    """One checkpoint of each architecture, all of one, and the broken ones, locally; results are in `place`/local."""
    entries = "  - folders: [models/*-0, 'models/mistral-[12]', broken/*]\n  - pretrained: ./nowhere\n"
    entries += "  - {pretrained: limited/short, lengths: [128]}\n  - {pretrained: limited/slow, timeout: 0.0001}\n"
    write_manifest(place, entries, "all.yaml")
    return sweep(place, "all.yaml", "-o", "local")


def test_broken_checkpoints_are_named_and_the_rest_completes(
    run: subprocess.CompletedProcess[str], place: Path
) -> None:
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    failed = {(event["checkpoint"], event["task"]): event["kind"] for event in events(place / "local", "failed")}
    assert failed == {(name, task): kind for name, kind in BROKEN.items() for task in TASKS}
    assert not (place / "ran").exists()  # the code of a checkpoint that nobody trusts
    assert len(results(place / "local")) == 12
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("longshort: 14 results")
    assert last.endswith(": longshort sweep all.yaml -o local --failed")
    for name, kind in BROKEN.items():
        assert name in run.stderr
        assert f"{kind}:" in run.stderr


def test_the_table_has_a_row_per_checkpoint_task_metric_and_length(
    run: subprocess.CompletedProcess[str], place: Path
) -> None:
    table = pd.read_parquet(place / "local" / "results.parquet")
    assert table["checkpoint"].nunique() == 6
    assert set(table["task"]) == set(TASKS)
    assert set(table.loc[table["metric"] == "ppl", "length"]) == {16, 32, 64}
    before = (place / "local" / "results.parquet").read_bytes()
    (place / "local" / "results.parquet").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "longshort", "status", str(place / "local"), "--table"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (place / "local" / "results.parquet").read_bytes() == before
    assert "non_finite" in done.stdout


def test_a_sweep_measures_what_an_evaluation_measures(run: subprocess.CompletedProcess[str], place: Path) -> None:
    metadata = {"corpus": str(place / "text.jsonl"), "lengths": [16, 32, 64], "num_docs": 3, "train_length": 32}
    alone = evaluate_checkpoint(
        {"pretrained": str(place / "models" / "gpt2-0"), "dtype": "float32"}, metadata=metadata, device="cpu"
    )
    (folder,) = (place / "local" / "results").glob("gpt2-0-*")
    for task in TASKS:
        (file,) = (folder / task).glob("results_*.json")
        saved = json.loads(file.read_text())
        assert _numbers(saved, task) == pytest.approx(_numbers(alone, task), rel=1e-5)
        assert saved["configs"][task]["metadata"]["scored"] == alone["configs"][task]["metadata"]["scored"]


def test_each_checkpoint_is_loaded_once(run: subprocess.CompletedProcess[str], place: Path) -> None:
    loaded = [event["checkpoint"] for event in events(place / "local", "loaded")]
    assert len(loaded) == len(set(loaded)) == 8  # those with NaN, and what is too short, can be loaded


def test_ray_gives_the_same_numbers(run: subprocess.CompletedProcess[str], place: Path) -> None:
    write_manifest(place, "  - folders: models/*-0\n", "sound.yaml")
    done = sweep(place, "sound.yaml", "-o", "ray", "--engine", "ray")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {name: value for name, value in results(place / "local").items() if "-0-" in name}
    assert results(place / "ray") == expected
    assert len(expected) == 8
    assert not (place / "ray" / "results_ray").exists()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_token_files_come_to_their_results(engine: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_bytes((place / "text.jsonl").read_bytes())
    write_manifest(tmp_path, f"  - {{pretrained: {place / 'models' / 'llama-1'}, save_tokens: true}}\n")
    done = sweep(tmp_path, "manifest.yaml", "-o", "out", "--engine", engine)
    assert done.returncode == 0, done.stderr[-2000:]
    for task in TASKS:
        (file,) = (tmp_path / "out").glob(f"results/*/{task}/results_*.json")
        found = aggregates(read_tokens(token_file_of(file), file))
        saved = _numbers(json.loads(file.read_text()), task)
        expected = {name.removesuffix(",none"): value for name, value in saved.items() if "_stderr" not in name}
        assert found[task] == pytest.approx(expected, rel=1e-5)
    again = sweep(tmp_path, "manifest.yaml", "-o", "out")
    assert "0 new results, 2 existing, 0 failed" in again.stdout


def test_a_rerun_does_what_is_missing_and_says_why(
    run: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    """A damaged file, another family (no number changes), other lengths of one checkpoint, new weights."""
    models = place / "models"
    entries = "".join(f"  - {{pretrained: {models}/{name}}}\n" for name in ("llama-1", "llama-2", "gpt2-0"))
    (tmp_path / "text.jsonl").write_bytes((place / "text.jsonl").read_bytes())
    write_manifest(tmp_path, entries)
    first = sweep(tmp_path, "manifest.yaml", "-o", "out")
    assert first.returncode == 0, first.stderr[-2000:]
    before = results(tmp_path / "out")
    again = sweep(tmp_path, "manifest.yaml", "-o", "out")
    assert again.returncode == 0
    assert "0 new results, 6 existing, 0 failed" in again.stdout

    (damaged,) = (tmp_path / "out").glob("results/llama-1-*/longshort_perplexity/results_*.json")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    entries = entries.replace("llama-2}", "llama-2, lengths: [16, 32]}").replace("gpt2-0}", "gpt2-0, family: other}")
    write_manifest(tmp_path, entries)
    done = sweep(tmp_path, "manifest.yaml", "-o", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3 new results, 3 existing, 0 failed" in done.stdout
    text = " ".join(done.stdout.split())
    assert contains(text, "llama-2", "longshort_perplexity", "lengths", [16, 32, 64], [16, 32])
    assert damaged.name in done.stderr
    after = results(tmp_path / "out")
    same = [name for name in before if "llama-2" not in name]
    for name in same:
        task = name.rpartition("/")[2]  # read alone after both were read together: rounding may differ
        assert after[name].keys() == before[name].keys() == {task}
        assert after[name][task].keys() == before[name][task].keys()
        numbers, known = (
            {metric: value for metric, value in found[name][task].items() if "@" in metric and value != "N/A"}
            for found in (after, before)
        )
        assert numbers == pytest.approx(known, rel=1e-6)
    assert len(list((tmp_path / "out").rglob("outdated_*.json"))) == 2
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert set(table["family"]) == {"llama-1", "llama-2", "other"}


def test_variants_of_one_checkpoint_are_measured_apart(place: Path, tmp_path: Path) -> None:
    """Two subfolders of one repository, each against the same weights as a checkpoint of its own."""
    (tmp_path / "text.jsonl").write_bytes((place / "text.jsonl").read_bytes())
    for name in ("llama-0", "llama-1"):
        shutil.copytree(place / "models" / name, tmp_path / "run" / name)
    for file in (tmp_path / "run" / "llama-0").glob("token*"):
        shutil.copy(file, tmp_path / "run")
    entries = "".join(
        f"  - {{pretrained: ./run, tasks: [{TASKS[0]}], model_args: {{subfolder: {name}}}}}\n"
        f"  - {{pretrained: ./run/{name}, tasks: [{TASKS[0]}]}}\n"
        for name in ("llama-0", "llama-1")
    )
    write_manifest(tmp_path, entries)
    done = sweep(tmp_path, "manifest.yaml", "-o", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    values = {Path(name).name: rows["value"].tolist() for name, rows in table.groupby("checkpoint")}
    assert len(values) == 4
    for name in ("llama-0", "llama-1"):
        assert values[f"run+subfolder={name}"] == pytest.approx(values[name], rel=1e-6)
    assert values["llama-0"] != pytest.approx(values["llama-1"], rel=1e-3)
    again = sweep(tmp_path, "manifest.yaml", "-o", "out")
    assert "0 new results, 4 existing, 0 failed" in again.stdout


def test_results_made_elsewhere_are_added_by_copying_them_in(
    run: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    source = next((place / "local" / "results").glob("llama-0-*/longshort_perplexity/results_*.json"))
    data = json.loads(source.read_text())
    data["config"]["model_args"]["pretrained"] = "somebody/elses"
    data.pop("longshort_sweep")
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "results_2026-01-01.json").write_text(json.dumps(data))
    done = subprocess.run(
        [sys.executable, "-m", "longshort", "status", str(tmp_path), "--table"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(pd.read_parquet(tmp_path / "results.parquet")["checkpoint"]) == {"somebody/elses"}


def test_an_interruption_ends_it_in_seconds_and_a_second_sweep_is_refused(place: Path, tmp_path: Path) -> None:
    write_manifest(place, "  - folders: models/gpt_neox-*\n", "three.yaml")
    command = [sys.executable, "-m", "longshort", "sweep", "three.yaml", "-o", str(tmp_path / "out"), "--workers", "1"]
    driver = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    _wait_for(lambda: events(tmp_path / "out", "done"), tmp_path / "out" / "status.jsonl")
    second = sweep(place, "three.yaml", "-o", str(tmp_path / "out"))
    assert second.returncode == 1
    assert f"{tmp_path / 'out'} (process {driver.pid} on" in second.stderr
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert events(tmp_path / "out", "interrupted")
    assert results(tmp_path / "out")


@pytest.mark.parametrize("victim", ["driver", "worker"])
def test_after_a_kill_nothing_is_lost_and_nothing_done_twice(
    victim: str, run: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    write_manifest(place, "  - folders: models/mistral-*\n", "mistral.yaml")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "longshort", "sweep", "mistral.yaml", "-o", str(out)]
    driver = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    _wait_for(lambda: events(out, "done"), out / "status.jsonl")
    workers = _children(driver.pid)
    assert workers
    os.kill(driver.pid if victim == "driver" else workers[0], signal.SIGKILL)
    driver.communicate(timeout=120)
    saved = {event["key"] for event in events(out, "done")}
    if victim == "driver":
        _wait_for(lambda: not any(_alive(pid) for pid in workers), out)
    done = sweep(place, "mistral.yaml", "-o", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    keys = [event["key"] for event in events(out, "done")]
    assert len(keys) == len(set(keys)) == 6
    assert saved <= set(keys)
    expected = results(place / "local")
    assert results(out) == {name: value for name, value in expected.items() if "mistral" in name}
    assert not list(out.rglob("*.tmp"))


def test_what_cannot_be_written_is_named_and_the_rest_completes(
    run: subprocess.CompletedProcess[str], place: Path, tmp_path: Path
) -> None:
    """A limit on the size of files, as a disk that is full for the greater of the two results."""
    sizes = {
        task: next((place / "local" / "results").glob(f"llama-0-*/{task}/results_*.json")).stat().st_size
        for task in TASKS
    }
    small, great = sorted(sizes, key=lambda task: sizes[task])
    limit = (sizes[small] + sizes[great]) // 2
    write_manifest(place, "  - folders: models/llama-0\n", "one.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "longshort", "sweep", "one.yaml", "-o", str(tmp_path)],
        cwd=place,
        # coverage could not write its own file
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "unwritable" in done.stderr
    (name,) = results(tmp_path)
    assert name.endswith(small)
    assert {event["task"] for event in events(tmp_path, "failed")} == {great}


def test_a_folder_that_cannot_be_written_is_told(place: Path) -> None:
    write_manifest(place, "  - folders: models/llama-0\n", "single.yaml")
    done = sweep(place, "single.yaml", "-o", "/proc/nowhere")
    assert done.returncode == 1
    assert "/proc/nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def _numbers(data: dict[str, Any], task: str) -> dict[str, float]:
    return {name: value for name, value in data["results"][task].items() if isinstance(value, float)}


def _wait_for(condition: object, file: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if file.exists() and condition():  # type: ignore[operator]  # a function
            return
        time.sleep(0.05)
    raise AssertionError("it took too long")


def _children(pid: int) -> list[int]:
    tasks = list(Path(f"/proc/{pid}/task").iterdir())  # a thread may have started them
    return sorted({int(child) for task in tasks for child in (task / "children").read_text().split()})


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
