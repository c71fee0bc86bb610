"""Gradients and updates of whole runs against a plain float64 loop: losses, extensions, accumulation, processes."""

import json
from pathlib import Path

import pytest
import torch

from longshort.training import TrainConfig
from longshort.training.run import prepare
from tests.training.launched import launch, record
from tests.training.plain_loop import train_plainly

LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "initializer_range": 0.25,  # so that distributions differ, and every term has a gradient to speak of
}
STEPS, BATCH = 3, 4
COMMON = {
    "tokenizer": "bytes",
    "train_length": 16,
    "steps": STEPS,
    "global_batch_size": BATCH,
    "learning_rate": 1e-3,
    "scheduler": "constant",
    "warmup": 0.0,
    "alpha": 2.0,
    "max_grad_norm": 1e6,  # a clipped gradient would hide a wrong factor
    "resume_every": 0,
}
EXTENDED = {"train_length": 24, "factor": 2.0}
CLEX = {"extension": "clex", "train_length": 32, "factor": 4.0, "extension_options": {"learning_rate": 1e-3}}
CASES = {
    "sce": {},
    "one window": {"windows": 1, "alpha": 0.0},
    "alpha 0": {"alpha": 0.0},
    "kl": {"divergence": "kl", "positions": "in_range", "detach": "long"},
    "js": {"divergence": "js", "positions": "last", "detach": "short", "alpha": 20.0},
    "jeffreys": {"divergence": "jeffreys", "loss": "dense", "weight_decay": 0.3, "max_grad_norm": 0.05},
    "linear": EXTENDED | {"extension": "linear", "divergence": "js", "detach": "long", "positions": "in_range"},
    "yarn": EXTENDED | {"extension": "yarn", "divergence": "kl", "detach": "short", "scheduler": "linear"},
    "eabf": EXTENDED | {"extension": "eabf", "extension_options": {"unscaled_layers": 1}, "positions": "last"},
    "longqlora": EXTENDED | {"extension": "longqlora", "lora_rank": 4, "lora_dropout": 0.0, "detach": "long"},
    "lora": {"lora_rank": 4, "lora_dropout": 0.0, "windows": 1, "alpha": 0.0},
    "clex": CLEX,
    "clex in range": CLEX | {"positions": "in_range", "detach": "short", "max_grad_norm": 0.5},
}
TOPOLOGIES = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)]  # processes, micro-batches of a step in each
IN_ALL = ("sce", "longqlora", "clex")  # the others run in one topology of one process and in one of two


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus and a model config."""
    folder = tmp_path_factory.mktemp("updates")
    texts = [" ".join(str(n * step) for n in range(300)) for step in (1, 7, 13)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder


def topologies(name, processes):
    """In which a case runs, among those of so many processes."""
    possible = [topology for topology in TOPOLOGIES if topology[0] == processes]
    return possible if name in IN_ALL else [possible[list(CASES).index(name) % len(possible)]]


def settings_of(folder, name, processes=1, micro_batches=1):
    batch_size = BATCH // processes // micro_batches
    paths = {"model_config": str(folder / "config.json"), "corpus": str(folder / "corpus.jsonl")}
    return COMMON | paths | {"output": str(folder / "run"), "batch_size": batch_size} | CASES[name]


@pytest.fixture(scope="module")
def recorded_by_two(folder):
    """What two processes did in every case; one launch for all."""
    settings = {
        f"{name} {micro_batches}": settings_of(folder, name, processes, micro_batches)
        for name in CASES
        for processes, micro_batches in topologies(name, 2)
    }
    launch(folder, {name: {"settings": own, "record": True} for name, own in settings.items()})
    return {name: torch.load(folder / f"{name}.pt") for name in settings}


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_updates_equal_a_plain_loop(folder, recorded_by_two, name):
    runs = [record(TrainConfig(**settings_of(folder, name, *topology))) for topology in topologies(name, 1)]
    runs += [recorded_by_two[f"{name} {micro_batches}"] for _, micro_batches in topologies(name, 2)]
    settings = settings_of(folder, name)
    sequences = list(prepare(TrainConfig(**settings).resolved(), Path(settings["output"]), progress=False).dataset)
    rates = [1e-3 * (1 - step / STEPS if settings["scheduler"] == "linear" else 1) for step in range(STEPS)]
    expected = train_plainly(LLAMA, settings, runs[0]["weights"][0], sequences, rates)
    for run in runs:
        assert_same(run, expected)


def assert_same(run, expected):
    """Terms to 1e-5, norms before clipping to 1e-4.

    Gradients to 1e-4 of the greatest of their tensor, weights to 1 % of what the run has moved them by.
    """
    assert len(run["gradients"]) == len(expected["gradients"]) == STEPS
    for step in range(STEPS):
        for name, value in expected["rows"][step].items():
            tolerance = 1e-4 if "norm" in name else 1e-5
            assert (run["rows"][step][name] or 0.0) == pytest.approx(value, rel=tolerance), name
        actual = run["gradients"][step]
        largest = max(gradient.abs().max() for gradient in expected["gradients"][step].values())
        assert actual.keys() == expected["gradients"][step].keys()
        for name, gradient in expected["gradients"][step].items():
            error = (actual[name] - gradient).abs().max()
            assert error <= 1e-4 * (gradient.abs().max() + 1e-4 * largest), (step, name)
    moved = 0.0
    for name, value in expected["weights"][-1].items():
        change = value - expected["weights"][0][name]
        moved += change.abs().sum()
        actual = run["weights"][-1][name].double() - expected["weights"][0][name]
        assert (actual - change).norm() <= 0.01 * change.norm(), name
    assert moved > 0
