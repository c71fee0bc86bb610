"""How `accelerate launch` divides a model among devices: DDP, FSDP, or a stage of DeepSpeed's ZeRO."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longshort.errors import UserError
from longshort.results import read_json

BUCKET = 500_000_000  # elements that ZeRO reduces at once, DeepSpeed's default
# FSDP1 also accepts the numbers of these, from 1.
STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")


@dataclass(frozen=True)
class Sharding:
    """Among how many devices the parts of a model are divided, 1 where each device holds the whole."""

    method: Literal["none", "DDP", "FSDP", "ZeRO"] = "none"
    processes: int = 1
    per_node: int = 1  # processes of one machine, which share its memory
    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    gathers: Literal["none", "block", "all"] = "none"  # sharded weights that a device holds whole at once
    offloads_weights: bool = False  # to the memory of the machine
    offloads_optimizer: bool = False
    bucket: int = 0  # elements of the buffer in which ZeRO reduces gradients

    def __str__(self) -> str:
        if self.method == "none":
            return "one device"
        devices = "one device" if self.processes == 1 else f"{self.processes} devices"
        stage = {
            "FSDP": f" ({'sharded' if self.gathers == 'block' else 'weights gathered'})",
            "ZeRO": f" {self.stage}" if self.stage else "",  # one device has nothing to divide
        }
        return f"{devices}, {self.method}{stage.get(self.method, '')}"

    @property
    def stage(self) -> int:
        """ZeRO's stage: how many of optimizer, gradients and weights are divided."""
        return sum(shards > 1 for shards in (self.optimizer, self.gradients, self.weights))

    @property
    def is_zero_3(self) -> bool:
        """Whether DeepSpeed holds the weights, be it on one device."""
        return self.method == "ZeRO" and self.gathers == "block"


def sharding_of(environment: Mapping[str, str], deepspeed: str | dict[str, Any] | None = None) -> Sharding:
    """Read the sharding from the variables that `accelerate launch` and torchrun set.

    Args:
        environment: such as `os.environ`.
        deepspeed: a DeepSpeed configuration, or the path of its JSON file; by default the file that accelerate was
            given, if any.

    Raises:
        UserError: the JSON file cannot be read, or a value is unknown or of another type than DeepSpeed's.
    """
    processes = int(environment.get("WORLD_SIZE", 1))
    per_node = int(environment.get("LOCAL_WORLD_SIZE", processes))
    if deepspeed is not None or _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        return _zero(environment, processes, per_node, deepspeed)
    if _is_on(environment, "ACCELERATE_USE_FSDP"):
        return _fsdp(environment, processes, per_node)
    return Sharding("DDP" if processes > 1 else "none", processes, per_node)


def _fsdp(environment: Mapping[str, str], processes: int, per_node: int) -> Sharding:
    strategy = environment.get("FSDP_SHARDING_STRATEGY", environment.get("FSDP_RESHARD_AFTER_FORWARD", "FULL_SHARD"))
    strategy = STRATEGIES[int(strategy) - 1] if strategy in ("1", "2", "3", "4", "5") else strategy.upper()
    if environment.get("FSDP_VERSION", "1") == "2":
        gives_back = _is_on(environment, "FSDP_RESHARD_AFTER_FORWARD", "true")
        strategy = "FULL_SHARD" if gives_back else "SHARD_GRAD_OP"
    if strategy == "NO_SHARD":
        return Sharding("DDP" if processes > 1 else "none", processes, per_node)
    shards = per_node if strategy.startswith("HYBRID") else processes
    wraps_blocks = environment.get("FSDP_AUTO_WRAP_POLICY", "NO_WRAP") != "NO_WRAP"
    offloads = _is_on(environment, "FSDP_OFFLOAD_PARAMS")
    return Sharding(
        "FSDP",
        processes,
        per_node,
        weights=shards,
        gradients=shards,
        optimizer=shards,
        gathers="block" if wraps_blocks and strategy in ("FULL_SHARD", "HYBRID_SHARD") else "all",
        offloads_weights=offloads,
        offloads_optimizer=offloads,
    )


def _zero(
    environment: Mapping[str, str], processes: int, per_node: int, given: str | dict[str, Any] | None
) -> Sharding:
    given = given or environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if given == "none":
        offload = {
            part: {"device": environment.get(f"ACCELERATE_DEEPSPEED_{name}_DEVICE", "none")}
            for part, name in (("offload_optimizer", "OFFLOAD_OPTIMIZER"), ("offload_param", "OFFLOAD_PARAM"))
        }
        zero = {"stage": int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2)), **offload}
    else:
        content = read_json(given) if isinstance(given, str) else given
        zero = _section(content, "zero_optimization", {"stage": 2})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise _wrong(f"ZeRO has no stage {stage!r}; choose 0, 1, 2 or 3")
    bucket = zero.get("reduce_bucket_size", BUCKET)
    if bucket != "auto" and not (isinstance(bucket, int | float) and 0 < bucket < math.inf):
        raise _wrong(f"reduce_bucket_size is {bucket!r}; it must be a number of elements, or auto")
    overlaps = zero.get("overlap_comm", stage == 3)
    return Sharding(
        "ZeRO" if stage else "DDP",
        processes,
        per_node,
        weights=processes if stage == 3 else 1,
        gradients=processes if stage >= 2 else 1,
        optimizer=processes if stage >= 1 else 1,
        gathers="block" if stage == 3 else "none",
        offloads_weights=_is_offloaded(zero, "offload_param"),
        offloads_optimizer=_is_offloaded(zero, "offload_optimizer"),
        bucket=(BUCKET if bucket == "auto" else int(bucket)) * (2 if overlaps else 1) if stage else 0,
    )


def _is_offloaded(zero: Mapping[str, Any], part: str) -> bool:
    if zero.get(part) is None:
        return False
    return _section(zero, part, {"device": "cpu"}).get("device", "none") in ("cpu", "nvme")


def _section(content: Mapping[str, Any], name: str, example: dict[str, Any]) -> dict[str, Any]:
    """The object of this name in a DeepSpeed configuration, empty where there is none."""
    section = content.get(name, {})
    if not isinstance(section, dict):
        raise _wrong(f"{name} is {json.dumps(section)}; it must be an object such as {json.dumps(example)}")
    return section


def _wrong(what: str) -> UserError:
    return UserError(f"DeepSpeed configuration: {what}.", "setting", "deepspeed")


def _is_on(environment: Mapping[str, str], name: str, default: str = "false") -> bool:
    return environment.get(name, default).lower() in ("1", "true", "yes", "on", "y", "t")
