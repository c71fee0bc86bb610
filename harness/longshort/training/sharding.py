"""How `accelerate launch` divides a model among devices: DDP, FSDP, or a stage of DeepSpeed's ZeRO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longshort.errors import UserError

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
        stage = {"FSDP": f" ({'sharded' if self.gathers == 'block' else 'weights gathered'})", "ZeRO": f" {self.stage}"}
        return f"{self.processes} devices, {self.method}{stage.get(self.method, '')}"

    @property
    def stage(self) -> int:
        """ZeRO's stage: how many of optimizer, gradients and weights are divided."""
        return sum(shards > 1 for shards in (self.optimizer, self.gradients, self.weights))


def sharding_of(environment: Mapping[str, str], deepspeed: str | dict[str, Any] | None = None) -> Sharding:
    """Read the sharding from the variables that `accelerate launch` and torchrun set.

    Args:
        environment: such as `os.environ`.
        deepspeed: a DeepSpeed configuration, or the path of its JSON file; by default the file that accelerate was
            given, if any.

    Raises:
        UserError: the JSON file cannot be read, or a value is unknown.
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
        zero = (_read(given) if isinstance(given, str) else given).get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"DeepSpeed's ZeRO has no stage {stage!r}; choose 0, 1, 2 or 3.", "setting", "deepspeed")
    bucket = zero.get("reduce_bucket_size", BUCKET)
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
        bucket=(int(bucket) if isinstance(bucket, int | float) else BUCKET) * (2 if overlaps else 1) if stage else 0,
    )


def _is_offloaded(zero: Mapping[str, Any], part: str) -> bool:
    return (zero.get(part) or {}).get("device", "none") in ("cpu", "nvme")


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"DeepSpeed's configuration '{path}' cannot be read: {error}.", "setting", "deepspeed"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"DeepSpeed's configuration '{path}' is not a JSON object.", "setting", "deepspeed")
    return content


def _is_on(environment: Mapping[str, str], name: str, default: str = "false") -> bool:
    return environment.get(name, default).lower() in ("1", "true", "yes", "on", "y", "t")
