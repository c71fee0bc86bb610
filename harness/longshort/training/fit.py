"""Whether a run fits the devices present, and what to change where it does not."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from longshort.errors import Kind, UserError
from longshort.training.base import Architecture, load_architecture
from longshort.training.config import TrainConfig
from longshort.training.estimate import GIB, LONG_RUN, Estimate, estimate
from longshort.training.lora import can_quantize
from longshort.training.sharding import Sharding, sharding_of

# The estimate of memory is within 15 % of what was measured (results/training_memory/): a run is refused beyond that.
TOLERANCE = 1.15
SURELY = 0.25  # a run whose rule of thumb stays below this share of everything is not looked at closer
CGROUPS = (  # limit and usage of the group that this process belongs to, where it is in a container
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
FSDP = "accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP"


@dataclass(frozen=True)
class Devices:
    """What is free, in bytes."""

    name: str | None  # of the GPU; None where the run takes place in main memory
    device: float | None  # of the GPU with the least
    host: float
    disk: float  # where the output goes


@dataclass(frozen=True)
class Shortage:
    """Something of which a run needs more than there is."""

    where: str  # "device", "host" or "disk"
    needed: float  # bytes
    available: float
    message: str  # one sentence: what is needed, what is available

    @property
    def is_certain(self) -> bool:
        """Whether it is beyond the error of the estimate; files have the size that is computed."""
        return self.where == "disk" or self.needed > TOLERANCE * self.available


def devices_present(output: Path, on_cpu: bool, environment: Mapping[str, str] = os.environ) -> Devices:
    """Measure what is free; of the disk also what an earlier, unfinished run of this output would give back."""
    name = device = None
    if not on_cpu and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        used = range(min(torch.cuda.device_count(), int(environment.get("LOCAL_WORLD_SIZE", 1))))
        totals = [torch.cuda.get_device_properties(index).total_memory for index in used]
        device = float(min(torch.cuda.mem_get_info()[0], *totals))
    folder = output.absolute()
    partial = folder.parent / f"{folder.name}.partial"  # with_name refuses the root, which --print-config may run in
    while not folder.exists():
        folder = folder.parent
    replaced = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    return Devices(name, device, _available_memory(), float(shutil.disk_usage(folder).free + replaced))


def _available_memory(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Main memory that is available, also to the container around this process."""
    available = float(psutil.virtual_memory().available)
    for limit, usage in CGROUPS:
        with suppress(OSError, ValueError):  # no such group, or "max": no limit
            left = int((root / limit).read_text()) - int((root / usage).read_text())
            available = min(available, left + _reclaimable((root / usage).with_name("memory.stat")))
    return available


def _reclaimable(statistics: Path) -> int:
    """Bytes of files that are cached, which a group's usage contains."""
    with suppress(OSError):
        for line in statistics.read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def shortages(cost: Estimate, devices: Devices) -> list[Shortage]:
    """Compare a run with what is present."""
    found = []
    peak = cost.device.peak
    if devices.device is not None and peak > devices.device:
        devices_needed = "each of its devices" if cost.sharding.processes > 1 else "the device"
        what = f"{peak / GIB:,.1f} GiB on {devices_needed}"
        has = f"{devices.name} has {devices.device / GIB:,.1f} GiB free"
        found.append(_shortage("device", what, peak, has, devices.device, _less_memory(cost, devices.device)))
    host = cost.host.peak
    if host > devices.host:
        has = f"{devices.host / GIB:,.1f} GiB are available"
        found.append(
            _shortage(
                "host", f"{host / GIB:,.1f} GiB of main memory", host, has, devices.host, _less_host(cost, devices.host)
            )
        )
    disk = cost.disk.peak
    if disk > devices.disk:
        has = f"{devices.disk / GIB:,.1f} GiB are free for {cost.config.output}"
        fewer = "--save-at, --resume-every 0" + (", no --keep-best" if cost.disk.best else "")
        remedy = f"Choose another --output, save less ({fewer}), or free some space"
        found.append(_shortage("disk", f"{disk / GIB:,.1f} GiB on the disk", disk, has, devices.disk, remedy))
    return found


def is_surely_small(rough: Estimate, devices: Devices) -> bool:
    """Whether a rough estimate is so far below everything present that a closer one is not worth its seconds."""
    device = devices.host if devices.device is None else devices.device
    pairs = ((rough.device.peak, device), (rough.host.peak, devices.host), (rough.disk.peak, devices.disk))
    return all(needed < SURELY * available for needed, available in pairs)


def check_fit(cost: Estimate, devices: Devices) -> list[str]:
    """Refuse a run that cannot fit; return a warning for each thing that may be too little.

    Raises:
        UserError: memory or disk do not suffice, by more than the error of the estimate.
    """
    found = shortages(cost, devices)
    for shortage in found:
        if shortage.is_certain:
            kind: Kind = "unwritable" if shortage.where == "disk" else "out_of_memory"
            field = "output" if shortage.where == "disk" else None
            raise UserError(f"{shortage.message} Or give --force to train all the same.", kind, field)
    return [shortage.message for shortage in found]


def check_devices(
    config: TrainConfig, architecture: Architecture, *, quantizes: bool, shows_messages: bool, force: bool
) -> None:
    """Refuse a run that cannot fit the devices present, and show the estimate of a long one; reads no weights.

    Raises:
        UserError: memory or disk do not suffice, and `force` is not set.
    """
    on_cpu, sharding = _runs_on_cpu(config), sharding_of(os.environ, config.deepspeed)
    devices = devices_present(Path(config.output).expanduser(), on_cpu)
    cost = estimate(config, architecture, sharding, quantizes=quantizes, on_cpu=on_cpu, traces=False)
    if cost.flops < LONG_RUN and is_surely_small(cost, devices):
        return
    cost = estimate(config, architecture, sharding, quantizes=quantizes, on_cpu=on_cpu)
    if cost.flops >= LONG_RUN and shows_messages:
        print(cost, file=sys.stderr)
    warnings = [shortage.message for shortage in shortages(cost, devices)] if force else check_fit(cost, devices)
    for warning in warnings:
        print(f"longshort: {warning}", file=sys.stderr)


def print_estimate(config: TrainConfig) -> None:
    """Print the estimate on stderr, and what this machine lacks for the run; one line where there is none."""
    on_cpu = _runs_on_cpu(config)
    quantizes = config.asks_for_4_bits and (config.quantization == "nf4" or can_quantize())
    try:
        cost = estimate(
            config,
            load_architecture(config),
            sharding_of(os.environ, config.deepspeed),
            quantizes=quantizes,
            on_cpu=on_cpu,
        )
    except UserError as error:
        print(f"longshort: no estimate of memory: {error}", file=sys.stderr)
        return
    print(cost, file=sys.stderr)
    for shortage in shortages(cost, devices_present(Path(config.output).expanduser(), on_cpu)):
        print(textwrap.fill(shortage.message, 80), file=sys.stderr)


def _runs_on_cpu(config: TrainConfig) -> bool:
    if (config.trainer_arguments or {}).get("use_cpu"):
        return True
    return not any(device.is_available() for device in (torch.cuda, torch.xpu))


def _shortage(where: str, what: str, needed: float, has: str, available: float, remedy: str) -> Shortage:
    return Shortage(where, needed, available, f"This run needs about {what}; {has}. {remedy}.")


def _less_memory(cost: Estimate, available: float) -> str:
    """What to change where a device's memory does not suffice, the greatest effect first."""
    config, sharding = cost.config, cost.sharding
    static = cost.device.static + cost.device.gathered
    remedies = []
    if static > available:
        if sharding.weights == 1:
            remedies.append(f"shard the model over several GPUs ({FSDP})")
        else:
            remedies.append("use more GPUs")
        if offload := _offload(sharding):
            remedies.append(offload)
        parts = cost.device.parts
        if sharding.method in ("none", "DDP") and parts["optimizer"] == max(parts.values()):
            remedies.append("use an optimizer with a smaller state (--optim adamw_8bit or adafactor)")
        if not config.rank_of_adapters:
            remedies.append("train adapters (--lora-rank 16)")
        if not cost.weights.quantized:
            remedies.append("hold the base in 4 bits (--lora-rank 16 --quantization nf4)")
    remedies += _fewer_activations(cost)
    return _sentence(remedies)


def _offload(sharding: Sharding) -> str | None:
    """How to hold more in main memory, where the launcher can and does not yet."""
    if sharding.method == "FSDP" and not sharding.offloads_weights:
        return "offload (--fsdp_offload_params true)"
    if sharding.method == "ZeRO" and not sharding.offloads_optimizer:
        return "offload (--offload_optimizer_device cpu, or offload_optimizer in a DeepSpeed configuration)"
    return None


def _fewer_activations(cost: Estimate) -> list[str]:
    config = cost.config
    remedies = [] if config.gradient_checkpointing else ["recompute activations (--gradient-checkpointing)"]
    if not (config.is_fused or cost.sharding.is_zero_3):
        remedies.append("hold no logits (--loss fused)")
    if config.dtype == "float32" and not cost.on_cpu:
        remedies.append("use half precision (--dtype bfloat16)")
    if config.batch_size > 1:
        remedies.append(f"take fewer sequences at once (--batch-size {config.batch_size // 2})")
    return [*remedies, "shorten --train-length"]


def _less_host(cost: Estimate, available: float) -> str:
    config, host = cost.config, cost.host
    remedies = []
    if host.saving > max(host.loading, host.training) and _can_keep_adapter(cost):
        remedies.append("save the adapter without merging it (--keep-adapter)")
    if cost.on_cpu:
        parts = cost.device.parts
        if parts["optimizer"] == max(parts.values()):
            remedies.append("use an optimizer with a smaller state (--optim adafactor)")
        remedies += [] if config.rank_of_adapters else ["train adapters (--lora-rank 16)"]
        remedies += _fewer_activations(cost) if host.training > available else []
    elif host.loading >= host.saving:
        if cost.sharding.per_node > 1:
            remedies.append("use fewer processes on this machine")
    elif host.training:
        remedies.append("offload less to main memory")
    return _sentence([*remedies, "use a machine with more memory"])


def _can_keep_adapter(cost: Estimate) -> bool:
    """Whether an adapter can hold all that is trained, and be loaded onto the base."""
    config, weights = cost.config, cost.weights
    is_new = config.rank_of_adapters > 0 and not config.keep_adapter
    return is_new and config.base is not None and config.extension == "none" and weights.trained == weights.adapters


def _sentence(remedies: list[str]) -> str:
    text = ", or ".join(remedies)
    return text[0].upper() + text[1:]
