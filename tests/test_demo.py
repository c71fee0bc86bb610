"""The demo end to end at a scale of seconds, and its rerun."""

from __future__ import annotations

import io
import os
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from rich.console import Console

from longshort.demo import Scale, run_demo
from longshort.lmeval import evaluate

TINY = Scale(
    base_steps=3,
    steps=2,
    batch_size=2,
    num_docs=3,
    lengths=(64, 128, 256),
    alphas=(0.0, 0.1, 0.5),
    extensions=("none", "clex"),
)
NAMES = [f"{extension}-a{alpha}" for extension in ("plain", "clex") for alpha in ("0", "0.1", "0.5")]


def files(folder: Path) -> dict[Path, float]:
    return {file: file.stat().st_mtime for part in ("checkpoints", "results") for file in (folder / part).rglob("*.*")}


def test_demo_and_its_rerun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # lm-eval's 100,000 resamples of three documents take longer than all else.
    monkeypatch.setattr(evaluate, "simple_evaluate", partial(evaluate.simple_evaluate, bootstrap_iters=100))
    out, screen = tmp_path / "demo", io.StringIO()
    run_demo(out, TINY, Console(file=screen, width=80))
    assert sorted(folder.name for folder in (out / "checkpoints").iterdir()) == sorted(["base", *NAMES])
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "clex-a0.5", trust_remote_code=True)
    assert model.config.rope_parameters["rope_type"] == "clex"
    assert torch.isfinite(model(torch.tensor([[65, 66]])).logits).all()

    measured = pd.read_csv(out / "measurements.csv")
    assert {Path(checkpoint).name for checkpoint in measured["checkpoint"]} == set(NAMES)
    assert set(measured["family"]) == {"plain", "clex"}
    assert {"ppl", "ppl_tail", "sce", "jeffreys"} <= set(measured["metric"])
    assert measured["stderr"].notna().all()
    table = pd.read_csv(out / "correlations.csv")
    assert "log_ppl@256" in set(table["outcome"])
    assert (table["n"] == 6).all()
    assert "jackknife" not in set(table["interval"])  # two families are too few
    assert "<script" in (out / "report.html").read_text()
    for name in ("perplexity_by_length", "misalignment_curve_sce"):
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text()
    text = screen.getvalue()
    assert all(name in text for name in NAMES)
    assert "min left" in text
    assert max(map(len, text.splitlines())) <= 80

    # An interrupted run: one checkpoint is missing; it and its results alone are made again.
    before, again = files(out), io.StringIO()
    shutil.rmtree(out / "checkpoints" / "plain-a0.1")
    run_demo(out, TINY, Console(file=again, width=80))
    after = files(out)
    changed = {file for file in after if after[file] != before.get(file)}
    assert {file.relative_to(out).parts[0] for file in changed} == {"checkpoints", "results"}
    assert all("plain-a0.1" in os.fspath(file) for file in changed)
    assert pd.read_csv(out / "measurements.csv").equals(measured)
    assert again.getvalue().partition("perplexity by length")[2] == text.partition("perplexity by length")[2]
