"""What `accelerate launch` sets is read as accelerate itself reads it."""

import json
import os

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from longshort.training.sharding import sharding_of
from tests.errors import user_error

WRAP = ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
KEEPS = ["--fsdp_reshard_after_forward", "false"]


def environment_of(arguments):
    """The variables that each of the processes gets of which a parsed `accelerate launch` consists."""
    arguments.mixed_precision, arguments.dynamo_backend, arguments.num_machines = "no", "no", 1
    arguments.deepspeed_fields_from_accelerate_config = ""
    made = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    return made | {"WORLD_SIZE": str(arguments.num_processes)}


def launched(*options):
    """The sharding of eight processes under `accelerate launch` with these options."""
    arguments = launch_command_parser().parse_args(["--num_processes", "8", *options, "scripts/train.py"])
    return sharding_of(environment_of(arguments) | {"LOCAL_WORLD_SIZE": "4"})


@pytest.mark.parametrize(
    ("options", "method", "shards", "gathers"),
    [
        ([], "DDP", (1, 1, 1), "none"),
        (["--use_fsdp", "--fsdp_version", "2", *WRAP], "FSDP", (8, 8, 8), "block"),
        (["--use_fsdp", "--fsdp_version", "2", *WRAP, *KEEPS], "FSDP", (8, 8, 8), "all"),
        (["--use_fsdp", "--fsdp_version", "2"], "FSDP", (8, 8, 8), "all"),
        (["--use_fsdp", *WRAP], "FSDP", (8, 8, 8), "block"),
        (["--use_fsdp", *WRAP, "--fsdp_sharding_strategy", "SHARD_GRAD_OP"], "FSDP", (8, 8, 8), "all"),
        (["--use_fsdp", *WRAP, "--fsdp_sharding_strategy", "2"], "FSDP", (8, 8, 8), "all"),
        (["--use_fsdp", *WRAP, "--fsdp_sharding_strategy", "HYBRID_SHARD"], "FSDP", (4, 4, 4), "block"),
        (["--use_fsdp", *WRAP, "--fsdp_sharding_strategy", "NO_SHARD"], "DDP", (1, 1, 1), "none"),
        (["--use_deepspeed", "--zero_stage", "0"], "DDP", (1, 1, 1), "none"),
        (["--use_deepspeed", "--zero_stage", "1"], "ZeRO", (1, 1, 8), "none"),
        (["--use_deepspeed", "--zero_stage", "2"], "ZeRO", (1, 8, 8), "none"),
        (["--use_deepspeed", "--zero_stage", "3"], "ZeRO", (8, 8, 8), "block"),
    ],
)  # fmt: skip
def test_what_accelerate_launch_sets(options, method, shards, gathers):
    sharding = launched(*options)
    assert (sharding.method, sharding.gathers) == (method, gathers)
    assert (sharding.weights, sharding.gradients, sharding.optimizer) == shards
    assert (sharding.processes, sharding.per_node) == (8, 4)


def test_offload():
    fsdp = launched("--use_fsdp", "--fsdp_version", "2", *WRAP, "--fsdp_offload_params", "true")
    assert fsdp.offloads_weights
    assert fsdp.offloads_optimizer
    zero = launched("--use_deepspeed", "--zero_stage", "3", "--offload_optimizer_device", "cpu")
    assert (zero.offloads_weights, zero.offloads_optimizer) == (False, True)


def test_without_a_launcher():
    assert sharding_of(os.environ | {"WORLD_SIZE": "1"}).method == "none"


def test_a_deepspeed_json(tmp_path):
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "reduce_bucket_size": 1000, "overlap_comm": False}
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    by_launch = launched("--use_deepspeed", "--deepspeed_config_file", str(path))
    given = sharding_of({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, str(path))
    assert by_launch == given
    assert (given.weights, given.offloads_weights, given.bucket) == (8, True, 1000)
    assert sharding_of({"WORLD_SIZE": "2"}, {"zero_optimization": {"stage": 1}}).optimizer == 2


@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_a_damaged_deepspeed_json(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_text(content)
    with user_error("data", str(path)):
        sharding_of({"WORLD_SIZE": "8"}, str(path))


@pytest.mark.parametrize(
    ("zero", "facts"),
    [
        ({"stage": 7}, ["stage", "7"]),
        (None, ["zero_optimization", "null"]),
        (True, ["zero_optimization", "true"]),
        ([{"stage": 2}], ["zero_optimization"]),
        ({"stage": 2, "offload_param": "cpu"}, ["offload_param", '"cpu"', '{"device": "cpu"}']),
        ({"stage": 2, "offload_optimizer": True}, ["offload_optimizer", "true"]),
        ({"stage": 2, "reduce_bucket_size": "5e8"}, ["reduce_bucket_size", "5e8", "auto"]),
        ({"stage": 2, "reduce_bucket_size": float("inf")}, ["reduce_bucket_size", "inf"]),
    ],
)
def test_a_section_of_another_type(zero, facts):
    with user_error("setting", *facts, field="deepspeed"):
        sharding_of({"WORLD_SIZE": "8"}, {"zero_optimization": zero})


def test_what_deepspeed_accepts():
    zero = {"stage": 2, "offload_param": None, "reduce_bucket_size": "auto", "overlap_comm": False}
    sharding = sharding_of({"WORLD_SIZE": "8"}, {"zero_optimization": zero})
    assert (sharding.offloads_weights, sharding.bucket) == (False, 500_000_000)
    assert sharding_of({"WORLD_SIZE": "8"}, {"bf16": {"enabled": True}}).method == "DDP"


@pytest.mark.parametrize(
    ("processes", "stage", "text"),
    [
        ("1", 2, "one device, ZeRO"),
        ("1", 0, "one device, DDP"),
        ("8", 0, "8 devices, DDP"),
        ("8", 2, "8 devices, ZeRO 2"),
    ],
)
def test_words(processes, stage, text):
    assert str(sharding_of({"WORLD_SIZE": processes}, {"zero_optimization": {"stage": stage}})) == text
