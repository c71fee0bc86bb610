"""The benchmarks of scoring, at tiny size: every side runs, and sides that do the same work agree."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from benchmarks import head, lengths, longppl, misalignment, perplexity
from benchmarks.scoring import Benchmark, forward_flops, random_llama, timed
from torch.utils.flop_counter import FlopCounterMode

SHAPE = {"vocabulary": 300, "hidden": 16, "layers": 1, "heads": 2, "dtype": "float32"}
OPTIONS = Namespace(**SHAPE, intermediate=None, kv_heads=None)


def values(benchmark: Benchmark) -> dict[str, float]:
    model = random_llama(OPTIONS, 96)
    tokens = torch.randint(97, 123, (1, 97), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = {side: action() for side, action in benchmark.actions(OPTIONS, model, tokens).items()}
    assert found.keys() == set(benchmark.sides)
    return found


def test_perplexity() -> None:
    """lm-eval puts a token before the text and scores the first one too: close, not equal."""
    found = values(perplexity.BENCHMARK)
    assert found[perplexity.STOCK] == pytest.approx(found[perplexity.OURS], rel=0.05)


def test_lengths() -> None:
    found = values(lengths.BENCHMARK)
    assert len(set(found.values())) == 1


def test_misalignment() -> None:
    found = values(misalignment.BENCHMARK)
    for side in (misalignment.OURS, misalignment.DENSE_ALL):
        assert found[side] == pytest.approx(found[misalignment.DENSE], rel=1e-5)


def test_longppl() -> None:
    pytest.importorskip("longppl.longppl", reason="no longppl: pip install --no-deps longppl==0.3.0")
    found = values(longppl.BENCHMARK)
    assert found[longppl.OURS] == pytest.approx(found[longppl.PACKAGE], rel=1e-5)


def test_head() -> None:
    assert values(head.BENCHMARK)[head.LIKELIHOOD] > 0


def test_half_precision_heads() -> None:
    """Both sides do the same work, so that in float32 nothing but the order of summation is between them."""
    found = values(head.HALF_BENCHMARK)
    assert found[head.LIKELIHOOD] == pytest.approx(found[head.ROUNDED_LIKELIHOOD], rel=1e-5)
    assert found[head.LOGITS] == pytest.approx(found[head.ROUNDED_LOGITS], rel=1e-4)


def test_the_command_writes_json(tmp_path: Path) -> None:
    script, output = Path(__file__).parents[2] / "scripts" / "benchmark.py", tmp_path / "lengths.json"
    command = ["lengths", "--cases", "16x1:128", "--vocabulary", "300", "--heads", "2", "--runs", "1"]
    done = subprocess.run(
        [sys.executable, str(script), *command, "--output", str(output)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "longest" in done.stdout
    (row,) = json.loads(output.read_text())["rows"]
    assert row[lengths.ALL]["runs"] == 1
    assert row[lengths.ALL]["value"] == row[lengths.LONGEST]["value"] > 0
    assert row[lengths.ALL]["time over longest"] > 0


def test_cases_measured_before_stay_where_all_else_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "head.json"
    monkeypatch.setattr(Benchmark, "_in_a_fork", lambda *args: {"error": "not measured"})

    def measure(*arguments: str) -> list[tuple[int, str]]:
        head.main([*arguments, "--output", str(output)])
        return [(row["tokens"], row["commit"]) for row in json.loads(output.read_text())["rows"]]

    monkeypatch.setattr("benchmarks.scoring.commit", lambda: "first")
    assert measure("--cases", "16x1:64,256", "--vocabulary", "300") == [(64, "first"), (256, "first")]
    monkeypatch.setattr("benchmarks.scoring.commit", lambda: "second")
    both = [(64, "second"), (128, "second"), (256, "first")]
    assert measure("--cases", "16x1:128,64", "--vocabulary", "300") == both
    assert measure("--cases", "16x1:128", "--vocabulary", "300", "--heads", "4") == [(128, "second")]


def test_what_other_processes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scoring.limit_memory", lambda: None)  # it would hold for the tests that follow
    busy = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    alone = timed(lambda: float(time.sleep(0.1) or 0), "cpu")
    beside = timed(lambda: float(subprocess.run(busy, check=True).returncode), "cpu")
    assert alone["cpu_seconds"] < 0.1
    assert beside["cpu_seconds"] < 0.3 <= beside["others_cpu_seconds"] + 0.02  # the machine counts in ticks of 10 ms


def test_no_gpu_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        perplexity.main(["--gpu"])


def test_flops_are_those_that_torch_counts() -> None:
    """torch counts attention over all pairs of positions, of which a causal one needs half."""
    case = Namespace(**SHAPE | {"hidden": 32, "layers": 3, "heads": 4}, intermediate=48, kv_heads=2, tokens=64)
    model = random_llama(case, 64)
    model.set_attn_implementation("eager")  # as products, which are counted
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 64, dtype=torch.long), use_cache=False)
    attention = 2 * 3 * 32 * 64**2
    assert counter.get_total_flops() == pytest.approx(forward_flops(case) + attention, rel=1e-3)
