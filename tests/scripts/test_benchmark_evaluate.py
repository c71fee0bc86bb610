"""The benchmark of a whole evaluation against an earlier commit: what it runs, counts and compares."""

from __future__ import annotations

import json
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import evaluate, evaluate_gpu, gpu
from benchmarks.scoring import forward_flops, random_llama, reading
from transformers import LlamaModel

from longshort.scoring.offsets import draw_offsets
from longshort.testing import save_checkpoint, save_letters

SHAPE = {"vocabulary": 300, "hidden": 16, "layers": 1, "heads": 2, "dtype": "float32"}
OPTIONS = Namespace(**SHAPE, intermediate=None, kv_heads=None)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_limit_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scoring.limit_memory", lambda: None)  # it would hold for the tests that follow


def test_tokens_are_counted_where_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_checkpoint(tmp_path / "model", sharpness=1.0)
    save_letters(tmp_path / "corpus.jsonl", 1, 400)
    seen: list[int] = []
    forward = LlamaModel.forward

    def counting(self: LlamaModel, input_ids: torch.Tensor, **options: Any) -> Any:
        seen.append(input_ids.numel())
        return forward(self, input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", counting)
    corpus = str(tmp_path / "corpus.jsonl")
    options = Namespace(checkpoint=[model], lengths="32,64", corpus=corpus, seed=0, dtype="float32")
    done = evaluate.measure(options)
    assert done["reads"] == seen[-len(done["reads"]) :]
    assert done["tokens"] == sum(done["reads"])
    assert done["reads"].count(64) >= 1
    assert done["code"] == str(ROOT / "harness" / "longshort")
    assert done["window_bytes"] == 64 * 32 * 4
    assert {name.partition("@")[0] for name in done["values"]} == set(evaluate.SAME)


def test_the_expected_tokens_are_the_mean_over_seeds() -> None:
    lengths = [16, 33, 64]
    draws = 4000
    shorter = {length: [length - draw_offsets(seed, 0, length)[0] for seed in range(draws)] for length in lengths}
    generator = np.random.default_rng(0)
    uniform = {length: length - generator.integers(1, length // 2 + 1, draws) for length in lengths}
    expected = evaluate.expected_tokens(lengths)
    assert expected["after"] == pytest.approx(sum(n + np.mean(shorter[n]) for n in lengths), rel=5e-3)
    assert expected["before"] == pytest.approx(
        max(lengths) + sum(2 * n + np.mean(uniform[n]) for n in lengths), rel=5e-3
    )


def test_the_expected_ratio_of_the_committed_lengths() -> None:
    lengths = [512, 1024, 2048, 4096, 8192]
    expected = evaluate.expected_tokens(lengths)
    ideal = (1 + 5 / 6) * sum(lengths) / (max(lengths) + 2.75 * sum(lengths))  # offsets of L/6 and L/4
    assert expected["after"] / expected["before"] == pytest.approx(ideal, rel=1e-3)


def runs(seconds: list[float], tokens: int, held: int) -> list[dict[str, Any]]:
    return [
        {
            "tokens": tokens,
            "reads": [tokens],
            "seconds": value,
            "cpu_seconds": 2 * value,
            "others_cpu_seconds": value / 2,
            "bytes": held * 2**20,
            "values": {"ppl@64,none": 4.0 + value / 1000},
            "document": {"names": ["a"], "sha256": "f"},
            "window_bytes": 2**20,
        }
        for value in seconds
    ]


def test_ratios_and_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    sides = {"before": runs([1000, 1200, 1400], 300, 40), "after": runs([500, 900, 840], 200, 43)}
    row = {"model": "SmolLM2-135M-Instruct"} | evaluate.summary(sides, [32, 64])
    assert row["tokens_ratio"] == pytest.approx(2 / 3)
    assert row["seconds_ratio"] == row["cpu_seconds_ratio"] == pytest.approx(0.6)  # of 0.5, 0.75 and 0.6
    assert row["bytes_more"] == 3 * 2**20
    assert row["greatest_relative_difference"] == pytest.approx((5.4 - 4.84) / 5.4)
    evaluate.show([row])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "0.667" in printed
    assert "840 (500–900)" in printed


def test_each_side_runs_its_own_code_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, str]] = []

    def child(name: str, given: dict[str, Any], side: str, environment: dict[str, str]) -> dict[str, Any]:
        started.append((side, environment["PYTHONPATH"]))
        code = Path(environment["PYTHONPATH"]) / "longshort"
        assert code.is_dir()
        return runs([3.0], 100, 1)[0] | {"code": str(code)}

    monkeypatch.setattr(evaluate, "run_child", child)
    model = save_checkpoint(tmp_path / "model")
    output = tmp_path / "evaluate.json"
    given = ["--before", "HEAD", "--checkpoint", str(model), "--lengths", "32,64", "--runs", "2"]
    skip_without_git()
    evaluate.main([*given, "--output", str(output)])
    assert [side for side, _ in started] == ["before", "after", "before", "after"]
    assert started[1][1] == str(ROOT / "harness")
    assert started[0][1] != started[1][1]
    assert not Path(started[0][1]).exists()  # the worktree is removed
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True).stdout
    assert str(Path(started[0][1]).parent) not in listed
    (row,) = json.loads(output.read_text())["rows"]
    assert row["model"] == "model"


def test_a_side_that_ran_other_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "run_child", lambda *args: {"code": "/elsewhere/longshort"})
    options = Namespace(lengths="32", corpus="builtin", seed=0, dtype="float32")
    with pytest.raises(SystemExit, match="/elsewhere/longshort"):
        evaluate._run(options, tmp_path, {"after": tmp_path}, "after")


def test_bad_input_is_refused_in_one_line(tmp_path: Path) -> None:
    skip_without_git()
    with (
        pytest.raises(SystemExit, match="no-such-commit") as refused,
        evaluate.worktree("no-such-commit", tmp_path / "x"),
    ):
        pass
    assert "\n" not in str(refused.value)
    options = Namespace(checkpoint=[tmp_path / "nothing"])
    with pytest.raises(SystemExit, match="nothing has no config"):
        evaluate.models(options, tmp_path)


def skip_without_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")


# ---- on a GPU


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        evaluate.main(["--gpu"])


def test_the_command_line_of_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: True)
    arguments = gpu.gpu_arguments("evaluate", ["--gpu", "--runs", "1"])
    options = evaluate_gpu.BENCHMARK._options(arguments)
    assert options.attention == "sdpa,flash_attention_2"
    assert (options.vocabulary, options.dtype, options.runs) == ("128256", "bfloat16", 1)
    assert options.output.name == "evaluate_gpu.json"


def test_the_sides_of_gpu_agree_and_read_what_they_should() -> None:
    """lm-eval puts a token before the text and scores the first one too: close, not equal."""
    model = random_llama(OPTIONS, 96)
    tokens = torch.randint(97, 123, (1, 97), generator=torch.Generator().manual_seed(0))
    found, read = {}, {}
    with torch.no_grad():
        for side, action in evaluate_gpu.actions(OPTIONS, model, tokens).items():
            with reading(model) as reads:
                found[side] = action()
            read[side] = reads
    assert found.keys() == set(evaluate_gpu.SIDES)
    assert found[evaluate_gpu.PERPLEXITY] == pytest.approx(found[evaluate_gpu.BOTH], rel=1e-6)
    assert found[evaluate_gpu.PERPLEXITY] == pytest.approx(found[evaluate_gpu.STOCK], rel=0.05)
    shorter = 96 - draw_offsets(0, 0, 96)[0]
    assert shorter not in read[evaluate_gpu.PERPLEXITY]
    assert {96, shorter} <= set(read[evaluate_gpu.BOTH])


def test_rates_are_of_the_windows_and_of_the_measured_product() -> None:
    case = Namespace(**SHAPE, intermediate=48, kv_heads=2, tokens=64)
    run = {"reads": [7, 64, 40, 8], "card": "a card", "matrix_flops_per_second": 1e6}
    found = gpu.rates(forward_flops, case, run, 2.0)
    flops = sum(forward_flops(Namespace(**vars(case) | {"tokens": tokens})) for tokens in (64, 40))
    assert found["windows"] == [64, 40]
    assert found["tokens/s"] == 52.0
    assert found["of rate"] == pytest.approx(flops / 2.0 / 1e6)
    assert "of rate" not in gpu.rates(forward_flops, case, {"reads": [64]}, 2.0)
