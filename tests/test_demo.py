"""The demo end to end at a scale of seconds, and its rerun."""

from __future__ import annotations

import io
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from rich.console import Console

from longshort.demo import (
    TRAIN_LENGTH,
    Scale,
    checkpoint_of,
    clipping_note,
    evaluate,
    retrieval_note,
    run_demo,
    training_plan,
)
from longshort.errors import UserError
from tests.errors import assert_facts

TINY = Scale(
    base_steps=3,
    steps=2,
    batch_size=2,
    num_docs=3,
    lengths=(128, 192, 256),
    alphas=(0.0, 0.1, 0.5),
    extensions=("none", "clex"),
    cpus=1,
)
NAMES = [f"{extension}-a{alpha}" for extension in ("plain", "clex") for alpha in ("0", "0.1", "0.5")]


def files(folder: Path) -> dict[Path, float]:
    """Files of checkpoints and results, and when they were changed."""
    found = [file for part in ("checkpoints", "sweep/results") for file in (folder / part).rglob("*")]
    return {file: file.stat().st_mtime for file in found if file.is_file()}


def test_demo_and_its_rerun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out, screen = tmp_path / "demo", io.StringIO()
    run_demo(out, TINY, Console(file=screen, width=80))
    assert sorted(folder.name for folder in (out / "checkpoints").iterdir()) == sorted(["base", *NAMES])
    model = transformers.AutoModelForCausalLM.from_pretrained(out / "checkpoints" / "clex-a0.5", trust_remote_code=True)
    assert model.config.rope_parameters["rope_type"] == "clex"
    assert torch.isfinite(model(torch.tensor([[65, 66]])).logits).all()

    measured = pd.read_csv(out / "measurements.csv")
    assert {Path(checkpoint).name for checkpoint in measured["checkpoint"]} == set(NAMES)
    assert set(measured["family"]) == {"plain", "clex"}
    assert {"ppl", "ppl_tail", "sce", "jeffreys", "recall", "recall_nll"} <= set(measured["metric"])
    assert (measured.loc[measured["metric"] == "recall", "value"] == 0).all()
    assert measured["stderr"].notna().all()
    table = pd.read_csv(out / "correlations.csv")
    assert "log_ppl@256" in set(table["outcome"])
    assert (table["n"] == 6).all()
    assert "jackknife" not in set(table["interval"])  # two families are too few
    assert "<script" in (out / "report.html").read_text()
    for name in ("perplexity_by_length", "misalignment_curve_sce"):
        assert "<svg" in (out / "figures" / f"{name}.svg").read_text()
    text = screen.getvalue()
    assert all(name in text for name in NAMES)
    assert "min left" in text
    assert "recall is 0 for all 6 checkpoints at 128, 192, 256 tokens" in " ".join(text.split())
    assert "CLEX: the gradient of the learned frequencies" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80

    # An interrupted run: a checkpoint and a result are missing; only they are made again. Training is deterministic,
    # so the results of that checkpoint still hold.
    (results,) = (out / "sweep" / "results").glob("plain-a0-*")
    before, again = files(out), io.StringIO()
    shutil.rmtree(out / "checkpoints" / "plain-a0.1")
    shutil.rmtree(results / "longshort_misalignment")
    run_demo(out, TINY, Console(file=again, width=80))
    after = files(out)
    changed = {file for file in after if after[file] != before.get(file)}
    parents = {out / "checkpoints" / "plain-a0.1", results / "longshort_misalignment"}
    assert all(parents & set(file.parents) for file in changed)
    assert all(any(parent in file.parents for file in changed) for parent in parents)
    assert pd.read_csv(out / "measurements.csv").equals(measured)
    assert again.getvalue().partition("perplexity by length")[2] == text.partition("perplexity by length")[2]


def test_every_checkpoint_is_evaluated_with_the_settings_of_the_demo(tmp_path: Path) -> None:
    for config in training_plan(tmp_path, TINY)[1:]:
        checkpoint = checkpoint_of(config, TINY)
        assert checkpoint.pretrained == str(tmp_path / "checkpoints" / checkpoint.name)
        assert (checkpoint.corpus, checkpoint.lengths, checkpoint.num_docs) == ("builtin", (128, 192, 256), 3)
        assert (checkpoint.train_length, checkpoint.dtype) == (TRAIN_LENGTH, "float32")
        assert checkpoint.family == checkpoint.name.partition("-")[0]
        assert checkpoint.trust_remote_code == (checkpoint.family in ("clex", "eabf"))


def test_the_note_on_clipping_compares_one_norm_with_two(tmp_path: Path) -> None:
    norms = [[0.5, 0.0], [0.6, 0.8], [3.0, 4.0], [2.0, 0.0]]  # one norm of both: 0.5, 1, 5, 2
    for name, rows in (("a", norms[:2]), ("b", norms[2:])):
        pd.DataFrame(rows, columns=["grad_norm", "grad_norm_frequencies"]).to_csv(tmp_path / name, index=False)
    note = clipping_note([tmp_path / "a", tmp_path / "b"], 1.0)
    assert_facts(note, 0.4, "4 in the largest", "up to 1.67 times", "median 1)")  # 5 / 3 in the third
    assert_facts(clipping_note([tmp_path / "b"], 10.0), "up to 1 times")


def test_the_note_on_retrieval_counts_checkpoints_that_retrieve() -> None:
    tidy = pd.DataFrame(
        {"checkpoint": ["a", "a", "b", "b"], "metric": "recall", "length": [128, 256] * 2, "value": [0, 0.5, 0, 0]}
    )
    assert_facts(retrieval_note(tidy), "above 0 for 1 of 2", "128, 256 tokens")
    assert_facts(retrieval_note(tidy.assign(value=0)), "0 for all 2", "128, 256 tokens")


def test_an_evaluation_that_fails_ends_the_demo(tmp_path: Path) -> None:
    checkpoint = checkpoint_of(training_plan(tmp_path, TINY)[1], TINY)  # it has not been trained
    with pytest.raises(UserError, match="plain-a0") as raised:
        evaluate([checkpoint], tmp_path / "sweep", Console(file=io.StringIO()))
    assert raised.value.kind == "not_found"


def test_the_plan_changes_one_thing_at_a_time(tmp_path: Path) -> None:
    base, *plan = [asdict(config) for config in training_plan(tmp_path, Scale())]
    assert (base["alpha"], base["windows"], base["base"]) == (0.0, 1, None)
    assert len(plan) == 12
    changed = ("output", "alpha", "extension", "factor")
    shared = [{name: value for name, value in run.items() if name not in changed} for run in plan]
    assert all(run == shared[0] for run in shared)  # seed, steps and batch: the same tokens in the same order
    assert shared[0]["base"] == base["output"]
    pairs = {(run["extension"], run["alpha"]) for run in plan}
    assert pairs == {(extension, alpha) for extension in Scale().extensions for alpha in Scale().alphas}
    assert {(run["extension"] == "none", run["factor"]) for run in plan} == {(True, None), (False, 4.0)}
