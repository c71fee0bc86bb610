"""What the Trainer is told, and what is refused before anything is loaded."""

import importlib.metadata
import json
from contextlib import suppress
from dataclasses import fields
from functools import partial

import pytest
import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from longshort.errors import UserError
from longshort.options import settings_of
from longshort.training import TrainConfig, train
from longshort.training.arguments import INSTALLED, OWNERS, REFUSED, training_arguments
from tests.errors import user_error
from tests.training.test_train import by_hand, folder, scratch, weights

__all__ = ["folder"]  # the fixture
# Fields of TrainingArguments that change neither the loss nor what a run records.
PASSED = {
    *("lr_scheduler_kwargs", "optim_args", "adam_epsilon", "optim_target_modules", "tf32", "torch_empty_cache_steps"),
    *("log_on_each_node", "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm"),
    *("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("full_determinism", "use_cpu", "dataloader_pin_memory", "ddp_find_unused_parameters", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "ddp_timeout", "debug"),
    "skip_memory_metrics",
}


def arguments(tmp_path, **changes):
    config = TrainConfig(output=str(tmp_path / "run"), base="base", batch_size=1, global_batch_size=4, **changes)
    return training_arguments(config.resolved(), tmp_path, progress=False)


def test_every_field_of_training_arguments_is_passed_on_or_has_its_reason():
    names = {field.name for field in fields(TrainingArguments) if field.init}
    assert names == PASSED | OWNERS.keys() | REFUSED.keys()
    assert len(names) == len(PASSED) + len(OWNERS) + len(REFUSED)
    options = {f"--{setting.name.replace('_', '-')}" for setting in settings_of(TrainConfig)}
    assert set(OWNERS.values()) <= options | {"--betas"}


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"max_step": 3}, ("'max_step'", "'max_steps'")),
        ({"max_steps": 3}, ("'max_steps'", "--steps")),
        ({"num_train_epochs": 1}, ("'num_train_epochs'", "--steps")),
        ({"adam_beta2": 0.9}, ("'adam_beta2'", "--betas")),
        ({"report_to": "wandb"}, ("'report_to'", "--report-to")),
        ({"remove_unused_columns": True}, ("'remove_unused_columns'", "columns")),
        ({"label_smoothing_factor": 0.1}, ("'label_smoothing_factor'", "cross-entropy")),
        ({"neftune_noise_alpha": 5}, ("'neftune_noise_alpha'", "misalignment")),
        ({"train_sampling_strategy": "group_by_length"}, ("'train_sampling_strategy'", "offset")),
        ({"dataloader_num_workers": 4}, ("'dataloader_num_workers'", "corpus")),
        ({"fsdp": "full_shard"}, ("'fsdp'", "accelerate launch")),
        ({"lr_scheduler_kwargs": {"foo": 1}}, ("lr_scheduler_kwargs", "foo")),
        ({"log_level": "foo"}, ("log_level", "foo")),
        ({"optim_args": "foo"}, ("'optim_args'", "'foo'")),
        ({"adam_epsilon": "small"}, ("'adam_epsilon'", "'small'", "number")),
        ({"torch_empty_cache_steps": -1}, ("torch_empty_cache_steps", -1)),
    ],
)
def test_trainer_arguments_that_cannot_be_set(tmp_path, given, facts):
    with user_error("setting", *facts, field="trainer_arguments"):
        arguments(tmp_path, trainer_arguments=given)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_logger_that_is_not_installed_is_refused_before_the_base_is_looked_for(tmp_path, monkeypatch, name):
    monkeypatch.setitem(INSTALLED, name, lambda: False)
    config = TrainConfig(output=str(tmp_path / "run"), base="nowhere", report_to=(name,))
    with user_error("dependency", f"'{name}'", f"pip install {name}", field="report_to"):
        train(config, progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "kind", "facts"),
    [
        ("adam", "setting", ("'adam'", "adamw_torch", "adafactor")),
        ("adalomo", "setting", ("'adalomo'", "backward")),
        ("galore_adamw_layerwise", "setting", ("'galore_adamw_layerwise'", "backward")),
        ("galore_adamw", "setting", ("'galore_adamw'", "optim_target_modules")),
        ("adamw_8bit", "dependency", ("'adamw_8bit'", "bitsandbytes")),
        ("schedule_free_adamw", "setting", ("'schedule_free_adamw'", "averages")),
        ("grokadamw", "dependency", ("'grokadamw'", "pip install grokadamw")),
    ],
)
def test_optimizers_that_cannot_be_used(tmp_path, name, kind, facts):
    for package in ("bitsandbytes", "schedulefree", "grokadamw"):
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(package)  # installed, it would not be refused
    with user_error(kind, *facts, field="optim"):
        arguments(tmp_path, optim=name)


def test_every_optimizer_of_transformers_is_one_line_or_usable(tmp_path):
    """Whatever is installed, none ends in another exception."""
    usable = set()
    for name in OptimizerNames:
        with suppress(UserError):
            usable.add(arguments(tmp_path, optim=name.value).optim)
    assert {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"} <= usable


@pytest.mark.parametrize(
    ("name", "optimizer", "norm"),
    [
        ("sgd", torch.optim.SGD, 0.01),
        ("sgd", torch.optim.SGD, 0.0),
        ("adamw_torch", partial(torch.optim.AdamW, weight_decay=0.0), 0.0),
    ],
)
def test_optimizers_and_clipping_equal_a_plain_loop(folder, tmp_path, name, optimizer, norm):
    config = scratch(
        folder,
        tmp_path / "run",
        model_config=None,
        base=str(folder / "base"),
        scheduler="constant",
        warmup=0.0,
        optim=name,
        max_grad_norm=norm,
    )
    state, _ = by_hand(folder, config, None, optimizer, norm or float("inf"))
    result = weights(train(config, progress=False))
    for key, expected in state.items():
        torch.testing.assert_close(result[key], expected, rtol=0, atol=5e-5)
    record = json.loads((tmp_path / "run" / "longshort.json").read_text())["config"]
    assert (record["optim"], record["max_grad_norm"]) == (name, norm)


def test_the_clipped_and_the_unclipped_run_differ(folder, tmp_path):
    """Otherwise the test above could not tell them apart."""
    config = scratch(folder, tmp_path, model_config=None, base=str(folder / "base"))
    clipped, _ = by_hand(folder, config, None, torch.optim.SGD, 0.01)
    free, _ = by_hand(folder, config, None, torch.optim.SGD, float("inf"))
    assert max((clipped[key] - free[key]).abs().max() for key in free) > 1e-4


def test_a_deepspeed_file_of_accelerate_is_given_to_longshort(tmp_path, monkeypatch):
    """accelerate passes it on as it is: what it lacks, such as clipping, would have DeepSpeed's default."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "zero.json")
    with user_error("setting", "--deepspeed zero.json", field="deepspeed"):
        arguments(tmp_path)


def test_without_a_compiler_nothing_is_loaded(tmp_path, monkeypatch):
    def fails(function):
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(torch, "compile", fails)
    with user_error("dependency", "no C++ compiler", "--torch-compile", field="torch_compile"):
        arguments(tmp_path, torch_compile=True)
