"""The best of the evaluated steps is what is saved."""

import csv
import json
import math

import pytest

from longshort.training import TrainConfig, run, train, windows
from longshort.training.best import best_step, remove_surpassed
from tests.errors import user_error
from tests.training.test_resume import assert_same_weights, folder, log, settings, stop_after

__all__ = ["folder"]  # the fixture
# By step; the first, before training, is the lowest of all and does not count.
VALUES = {0: 1.0, 1: 9.0, 2: 5.0, 3: 6.0, 4: 3.0, 5: 4.0, 6: 3.0}


@pytest.fixture
def evaluated(folder, monkeypatch):
    """Settings of a run whose evaluations are `VALUES`, in this order."""

    def evaluate(*_):
        value = VALUES[calls["next step"]]
        calls["next step"] += 1
        return {"ppl@8": value, "sce": -value, "entropy": 0.0, "jeffreys": 0.0}

    calls = {"next step": 0}
    monkeypatch.setattr(run, "evaluate", evaluate)
    changes = {"eval_every": 1, "eval_lengths": (8,), "eval_corpus": str(folder / "corpus.jsonl")}
    return settings(folder, scheduler="constant", warmup=0.0, **changes), calls


def test_the_best_step_is_saved_with_all_logs(folder, evaluated):
    changes, _ = evaluated
    short = changes | {"steps": 4, "eval_every": 0}
    expected = train(TrainConfig(output=str(folder / "short"), **short), progress=False)
    config = TrainConfig(output=str(folder / "run"), keep_best="ppl@8", **changes)
    output = train(config, progress=False)
    assert_same_weights(expected, output)
    record = json.loads((output / "longshort.json").read_text())
    assert (record["steps"], record["tokens_seen"]) == (4, 4 * 4 * 2 * 16)
    assert record["best"] == {"value": "ppl@8", "step": 4}
    assert record["evaluation"]["ppl@8"] == 3.0
    assert record["config"]["keep_best"] == "ppl@8"
    assert record["final"]["loss"] == pytest.approx(sum(float(row["loss"]) for row in log(output)[:4]) / 4)
    assert [row["step"] for row in log(output)] == ["1", "2", "3", "4", "5", "6"]
    rows = list(csv.DictReader((output / "evaluation_log.csv").open()))
    assert [float(row["ppl@8"]) for row in rows] == list(VALUES.values())
    assert "6 steps by the lowest ppl@8" in (output / "README.md").read_text()
    assert not list(folder.glob("*.partial"))


def test_an_interrupted_run_keeps_the_same_best(folder, evaluated, monkeypatch):
    changes, calls = evaluated
    # More documents than are read at once, each as long as a sequence.
    monkeypatch.setattr(windows, "BUFFER_SEQUENCES", 1)
    texts = [f"{index:03} {'abcdefghij' * 3}"[:26] for index in range(60)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = TrainConfig(output=str(folder / "run"), keep_best="sce", **changes)  # which is lowest at step 1
    with monkeypatch.context() as patch:
        stop_after(patch, 9)  # in step 5, after the save at step 4
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    assert [path.name for path in (folder / "run.partial").glob("best-*")] == ["best-1"]
    calls["next step"] = 5
    output = train(config, progress=False)
    assert json.loads((output / "longshort.json").read_text())["best"] == {"value": "sce", "step": 1}
    one = train(TrainConfig(output=str(folder / "one"), **changes | {"steps": 1, "eval_every": 0}), progress=False)
    assert_same_weights(one, output)
    read = [json.loads((place / "longshort.json").read_text())["corpus"]["documents"] for place in (one, output)]
    assert read[0] <= read[1] <= read[0] + 2  # what was read by then, and the batch that was fetched ahead


def test_the_lowest_value_and_the_first_of_equals():
    rows = [{"step": step, "ppl@8": value} for step, value in VALUES.items()]
    assert best_step(rows, "ppl@8") == 4
    assert best_step(rows[:3], "ppl@8") == 2
    assert best_step([{"step": 1, "sce": math.nan}, {"step": 2, "sce": math.inf}, {"step": 3, "sce": 1.0}], "sce") == 3


@pytest.mark.parametrize(
    ("last_save", "left"), [(0, ["best-9"]), (4, ["best-4", "best-9"]), (6, ["best-4", "best-9"]), (9, ["best-9"])]
)
def test_what_a_resumed_run_may_need_is_kept(tmp_path, last_save, left):
    for step in (2, 4, 7, 9):
        (tmp_path / f"best-{step}").mkdir()
    remove_surpassed(tmp_path, 9, last_save)
    assert sorted(path.name for path in tmp_path.iterdir()) == left


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"keep_best": "ppl@9", "eval_every": 1, "eval_lengths": (8,)}, ("'ppl@9'", "ppl@8", "jeffreys")),
        ({"keep_best": "loss", "eval_every": 1, "eval_lengths": (8,)}, ("'loss'", "ppl@8")),
        ({"keep_best": "ppl@8"}, ("--eval-every",)),
    ],
)
def test_values_that_are_not_evaluated(folder, changes, facts):
    with user_error("setting", *facts, field="keep_best"):
        TrainConfig(output="x", **settings(folder, **changes))


def test_a_length_beyond_the_model(folder):
    """GPT-2 has learned positions: longer texts are not evaluated."""
    small = {"model_type": "gpt2", "vocab_size": 257, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    (folder / "gpt2.json").write_text(json.dumps(small))
    changes = {"model_config": str(folder / "gpt2.json"), "eval_every": 1, "eval_lengths": (8, 64)}
    changes |= {"eval_corpus": str(folder / "corpus.jsonl"), "keep_best": "ppl@64"}
    with user_error("length", "'ppl@64'", field="keep_best"):
        train(TrainConfig(output=str(folder / "run"), **settings(folder, **changes)), progress=False)
