"""Killed runs go on to the same weights; snapshots; a disk that fills."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from longshort.cli import app
from longshort.training import TrainConfig, evaluation, run, train, trainer
from longshort.training.trainer import LongShortTrainer
from tests.errors import assert_error, user_error
from tests.training.test_train import LLAMA, ROOT

TEXTS = [" ".join(str(n * step) for n in range(300)) for step in (1, 7, 13)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def settings(folder, **changes):
    defaults = {
        "model_config": str(folder / "config.json"),
        "tokenizer": "bytes",
        "corpus": str(folder / "corpus.jsonl"),
        "train_length": 16,
        "steps": 6,
        "global_batch_size": 4,
        "batch_size": 2,
        "learning_rate": 1e-2,
        "alpha": 0.5,
        "resume_every": 2,
    }
    return defaults | changes


def state(path):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).state_dict()


def assert_same_weights(first, second):
    first, second = state(first), state(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def log(path):
    rows = list(csv.DictReader((path / "training_log.csv").open()))
    return [{name: value for name, value in row.items() if name != "tokens_per_second"} for row in rows]


def stop_after(monkeypatch, micro_batches):
    """The run is interrupted in the middle of a step."""
    own, count = LongShortTrainer.compute_loss, iter(range(micro_batches))

    def compute_loss(self, *args, **kwargs):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    monkeypatch.setattr(LongShortTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0.0, "eval_every": 2, "eval_lengths": (8, 16), "eval_docs": 1},
        {"lora_rank": 4, "lora_dropout": 0.3, "train_embeddings_and_norms": True},
        {"extension": "clex", "factor": 4.0, "lora_rank": 4, "gradient_checkpointing": True},
    ],
    ids=["plain", "lora", "clex-lora"],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(folder, monkeypatch, changes):
    changes = changes | {"eval_corpus": str(folder / "corpus.jsonl")}
    whole = train(TrainConfig(output=str(folder / "whole"), **settings(folder, **changes)), progress=False)
    config = TrainConfig(output=str(folder / "broken"), **settings(folder, **changes))
    with monkeypatch.context() as patch:
        stop_after(patch, 9)  # in step 5, after the save at step 4
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    assert [path.name for path in folder.glob("broken*")] == ["broken.partial"]
    assert {path.name for path in (folder / "broken.partial").glob("checkpoint-*")} == {"checkpoint-4"}
    broken = train(config, progress=False)
    assert_same_weights(whole, broken)
    assert log(whole) == log(broken)
    records = [json.loads((path / "longshort.json").read_text()) for path in (whole, broken)]
    assert records[0] == records[1]
    evaluations = [path / "evaluation_log.csv" for path in (whole, broken)]
    if "eval_every" in changes:
        assert evaluations[0].read_text() == evaluations[1].read_text()
    assert [path.exists() for path in evaluations] == ["eval_every" in changes] * 2
    assert not list(folder.glob("*.partial"))


def test_a_checkpoint_without_weights_is_not_finished(folder, monkeypatch):
    config = TrainConfig(output=str(folder / "run"), **settings(folder))
    own = LongShortTrainer.save_model

    def save_model(self, output_dir, _internal_call=False):
        if _internal_call:  # of a save to resume from; the other writes nothing, as where weights stay sharded
            own(self, output_dir, _internal_call)

    with monkeypatch.context() as patch:
        patch.setattr(LongShortTrainer, "save_model", save_model)
        with user_error("unwritable", "--zero3_save_16bit_model true", field="output"):
            train(config, progress=False)
    assert [path.name for path in folder.glob("run*")] == ["run.partial"]
    assert [path.name for path in (folder / "run.partial").glob("checkpoint-*")] == ["checkpoint-4"]


def flags(output, changes):
    names = {"model_config": "config"}
    settings = (f"--{names.get(name, name).replace('_', '-')}={value}" for name, value in changes.items())
    return ["train", "-o", str(output), *settings]


def test_a_killed_process_goes_on_to_the_same_weights(folder):
    changes = settings(folder, steps=40, resume_every=5)
    whole = train(TrainConfig(output=str(folder / "whole"), **changes), progress=False)
    output = folder / "killed"
    command = [sys.executable, "-m", "longshort", *flags(output, changes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "harness"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not list(Path(f"{output}.partial").glob("checkpoint-[12]?/trainer_state.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    again = CliRunner().invoke(app, flags(output, changes))
    assert again.exit_code == 0, again.output
    assert_same_weights(whole, output)
    assert [row["step"] for row in log(output)] == [str(step) for step in range(1, 41)]


@pytest.mark.parametrize("left", [None, '{"epoch": 0.'], ids=["no state", "half a state"])
def test_a_save_that_was_cut_off_is_not_used(folder, monkeypatch, left):
    config = TrainConfig(output=str(folder / "run"), **settings(folder))
    whole = train(TrainConfig(output=str(folder / "whole"), **settings(folder)), progress=False)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    saved = folder / "run.partial" / "checkpoint-4"
    shutil.copytree(saved, saved.with_name("checkpoint-5"))
    cut = saved.with_name("checkpoint-5") / "trainer_state.json"
    cut.unlink() if left is None else cut.write_text(left)
    assert_same_weights(whole, train(config, progress=False))


def test_an_unfinished_run_of_other_settings_is_not_overwritten(folder, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(output=str(folder / "run"), **settings(folder)), progress=False)
    other = TrainConfig(output=str(folder / "run"), **settings(folder, seed=1))
    with user_error("conflict", str(folder / "run.partial"), field="output"):
        train(other, progress=False)
    assert (folder / "run.partial" / "checkpoint-4").is_dir()


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 4}], ids=["full", "lora"])
def test_snapshots_are_the_shorter_runs_without_disturbing_the_longer(folder, changes):
    constant = {"scheduler": "constant", "warmup": 0.0, **changes}  # so that a shorter run is the beginning
    plain = train(TrainConfig(output=str(folder / "plain"), **settings(folder, **constant)), progress=False)
    config = TrainConfig(output=str(folder / "run"), **settings(folder, save_at=(2, 5), **constant))
    output = train(config, progress=False)
    assert_same_weights(plain, output)
    for steps in (2, 5):
        short = TrainConfig(output=str(folder / f"short{steps}"), **settings(folder, **constant | {"steps": steps}))
        assert_same_weights(train(short, progress=False), folder / f"run-step{steps}")
        record = json.loads((folder / f"run-step{steps}" / "longshort.json").read_text())
        assert (record["steps"], record["tokens_seen"]) == (steps, steps * 4 * 2 * 16)
        assert len(log(folder / f"run-step{steps}")) == steps


def test_evaluations_change_nothing_and_are_kept(folder):
    evaluated = {"eval_every": 4, "eval_lengths": (8, 64), "eval_docs": 2, "eval_corpus": str(folder / "corpus.jsonl")}
    plain = train(TrainConfig(output=str(folder / "plain"), **settings(folder)), progress=False)
    output = train(TrainConfig(output=str(folder / "run"), **settings(folder, **evaluated)), progress=False)
    assert_same_weights(plain, output)
    rows = list(csv.DictReader((output / "evaluation_log.csv").open()))
    assert [row["step"] for row in rows] == ["0", "4", "6"]
    assert list(rows[0]) == ["step", "ppl@8", "ppl@64", "sce", "entropy", "jeffreys"]
    assert float(rows[0]["ppl@8"]) == pytest.approx(257, rel=0.2)  # a random model knows nothing
    assert float(rows[-1]["ppl@8"]) < float(rows[0]["ppl@8"])
    record = json.loads((output / "longshort.json").read_text())
    assert record["evaluation"]["sce"] == pytest.approx(float(rows[-1]["sce"]))


def test_the_speed_is_that_of_training_alone(folder, monkeypatch):
    """A clock that goes on by a second whenever it is read, and by an hour in an evaluation."""
    now = 0.0

    def read():
        nonlocal now
        now += 1
        return now

    def evaluate(*_):
        nonlocal now
        now += 3600
        return dict.fromkeys(("ppl@8", *evaluation.TERMS), 1.0)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=read))
    monkeypatch.setattr(run, "evaluate", evaluate)
    evaluated = {"eval_every": 1, "eval_lengths": (8,), "eval_corpus": str(folder / "corpus.jsonl")}
    output = train(TrainConfig(output=str(folder / "run"), **settings(folder, **evaluated)), progress=False)
    rows = list(csv.DictReader((output / "training_log.csv").open()))
    assert [float(row["tokens_per_second"]) for row in rows] == [4 * 2 * 16] * 6


def test_files_have_no_held_out_text_of_their_own(folder):
    with user_error("setting", str(folder / "corpus.jsonl"), "validation", "--eval-corpus", field="eval_corpus"):
        train(TrainConfig(output=str(folder / "run"), **settings(folder, eval_every=2)), progress=False)


@contextmanager
def no_file_above(size):
    """In this process alone; Python ignores the signal, so that a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(folder):
    """A limit on the size of files stands for the disk: the optimizer's state does not fit any more."""
    output = folder / "run"
    command = flags(output, settings(folder))
    with no_file_above(60_000):
        failed = CliRunner().invoke(app, command)
    assert failed.exit_code == 1
    assert_error(failed.exception, "unwritable", str(output), field="output")
    assert not output.exists()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (output / "model.safetensors").is_file()
