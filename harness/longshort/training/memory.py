"""Bytes that a run needs: on each device, in the memory of the machine, and on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from longshort.training.closed_form import NUM_BUFFERS
from longshort.training.config import TrainConfig
from longshort.training.fused import chunk_sizes
from longshort.training.optimizer_state import optimizer_state
from longshort.training.sharding import Sharding
from longshort.training.trace import Trace
from longshort.training.weights import Weights


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device; `peak` is less than the sum where not all of it exists at the same time."""

    weights: float
    gradients: float
    optimizer: float  # its state, such as AdamW's moments; with ZeRO in bfloat16 also its float32 weights
    buckets: float  # DDP's or ZeRO's buffers for reducing gradients
    gathered: float  # weights that FSDP or ZeRO 3 gather, and a block's gradient
    cast_copies: float  # autocast's bfloat16 copies of weights
    activations: float  # what the forward keeps for the backward, and the most that a layer's backward adds
    loss: float  # logits, or the chunks of the fused loss; the LM head's gradient
    peak: float

    @property
    def static(self) -> float:
        """What every step holds whatever the length: weights, gradients, the optimizer's state, buckets."""
        return self.weights + self.gradients + self.optimizer + self.buckets

    @property
    def parts(self) -> dict[str, float]:
        """Name of each part, and its bytes."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "peak"}


@dataclass(frozen=True)
class HostMemory:
    """The most bytes of main memory on one machine, by phase, without what Python and its libraries take."""

    loading: float
    training: float  # what is offloaded; all that a device would hold where there is no other device
    saving: float

    @property
    def peak(self) -> float:
        """The most at any time."""
        return max(self.loading, self.training, self.saving)


@dataclass(frozen=True)
class DiskSpace:
    """Bytes under the output's folder."""

    finished: float  # the checkpoint
    snapshots: float  # OUTPUT-stepN, all of them
    best: float  # earlier best steps in OUTPUT.partial, besides the one that becomes the checkpoint
    conversion: float  # a checkpoint is written in float32 before it is converted to its own dtype
    resuming: float  # in OUTPUT.partial, with the optimizer's state; two saves exist while the older is replaced

    @property
    def peak(self) -> float:
        """The most at one time."""
        return self.finished + self.snapshots + self.best + self.conversion + self.resuming


def device_memory(
    config: TrainConfig,
    weights: Weights,
    sharding: Sharding,
    traced: Trace,
    *,
    width: int,
    vocabulary: int,
    device: str,
) -> DeviceMemory:
    """Add up what one device holds.

    Args:
        config: the settings.
        weights: numbers of weights.
        sharding: how they are divided.
        traced: what a forward and a backward pass hold in addition.
        width: of the hidden states.
        vocabulary: of the model.
        device: "cuda" or "cpu": the chunks of the fused loss differ.
    """
    half = config.dtype == "bfloat16"
    size = 2 if half else 4  # bytes of a number in a forward
    compute = 2 if half and sharding.method == "ZeRO" else 4  # ZeRO trains bfloat16 weights, with float32 ones aside
    stored = weights.stored if compute == 4 else 2 * weights.total
    gradients = compute * weights.trained / sharding.gradients
    state = optimizer_state(config, weights)
    optimizer = (state + (4 * weights.trained if compute == 2 else 0)) / sharding.optimizer
    buckets = 0.0
    if sharding.method == "DDP":
        buckets = 4 * weights.trained
    elif sharding.method == "ZeRO":
        buckets = compute * min(sharding.bucket, weights.trained)
    gathered = {
        "none": 0,
        "block": size * (weights.outside + 3 * weights.largest_block),  # this one, the next, and a gradient
        "all": size * (weights.total + weights.largest_block),
    }[sharding.gathers]
    held = 0.0 if sharding.offloads_weights else stored / sharding.weights
    if sharding.offloads_weights:
        gradients = 0.0
    if sharding.offloads_optimizer:
        optimizer = 0.0
    keeps_gradients = keeps_gradients_of(config, sharding)
    loss, kept = _loss(config, weights, sharding, traced, size, width, vocabulary, device)
    dequantized = 2 * weights.largest_linear if weights.quantized else 0
    always = held + optimizer + buckets + gathered + dequantized + (gradients if keeps_gradients else 0)
    at_end = traced.activations + traced.cast_copies
    in_forward = max(traced.forward, at_end + loss)
    in_backward = traced.backward + (0 if keeps_gradients else kept)
    peak = max(always + in_forward, always + in_backward, held + optimizer + buckets + gradients)
    backward_adds = traced.backward - (0 if keeps_gradients else gradients) - traced.activations
    activations = traced.activations + dequantized + max(0.0, backward_adds if config.gradient_checkpointing else 0.0)
    return DeviceMemory(held, gradients, optimizer, buckets, gathered, traced.cast_copies, activations, loss, peak)


def keeps_gradients_of(config: TrainConfig, sharding: Sharding) -> bool:
    """Whether gradients exist during a forward: those of earlier micro-batches, or the shards' own."""
    at_once = config.batch_size * sharding.processes
    return sharding.gradients > 1 or config.global_batch_size > at_once


def _loss(
    config: TrainConfig,
    weights: Weights,
    sharding: Sharding,
    traced: Trace,
    size: int,
    width: int,
    vocabulary: int,
    device: str,
) -> tuple[float, float]:
    """The most that the loss holds at once; and what of it stays until the backward has passed the LM head."""
    if not config.is_fused:
        return traced.forward - traced.activations - traced.cast_copies, 0.0
    tokens = config.batch_size * config.windows * config.train_length
    pairs, block = chunk_sizes(vocabulary, torch.device(device), tokens)
    chunks = 2 * pairs * vocabulary * size + NUM_BUFFERS * block * vocabulary * 4
    copied = size * weights.head if size == 2 and sharding.method in ("none", "DDP") else 0
    grad_head = 4 * weights.head if weights.head_is_trained else 0
    grad_hidden = tokens * width * (2 if size == 2 and sharding.method == "ZeRO" else 4)
    return max(chunks + copied, grad_head + grad_hidden) + grad_head + grad_hidden, grad_head


def host_memory(
    config: TrainConfig, weights: Weights, sharding: Sharding, on_device: DeviceMemory, *, on_cpu: bool
) -> HostMemory:
    """Main memory of one machine: every process loads all weights in float32.

    A base in 4 bits is quantized tensor by tensor. The main process holds a whole float32 checkpoint when it saves,
    and with LoRA twice: the fresh base that the adapters are merged into. Adapters that are kept need no base; but
    where weights are sharded, all of them are gathered.
    """
    base = weights.total - weights.adapters
    loading = sharding.per_node * (0.0 if weights.quantized else 4.0 * base)
    written = 4.0 * base * (2 if config.rank_of_adapters else 1)  # the fresh base, and what safetensors makes of it
    if config.keep_adapter:
        written = 4.0 * (weights.adapters + (weights.total if sharding.weights > 1 else 0))
    if on_cpu:
        held = sharding.per_node * (on_device.weights + on_device.optimizer)
        return HostMemory(loading, sharding.per_node * on_device.peak, held + written)
    offloaded = 0.0
    if sharding.offloads_weights:
        offloaded += 4 * weights.total / sharding.weights + 4 * weights.trained / sharding.gradients
    if sharding.offloads_optimizer:
        master = 4 if sharding.method == "ZeRO" else 0
        gradient = 0 if sharding.offloads_weights else 4
        state = optimizer_state(config, weights) + (master + gradient) * weights.trained
        offloaded += state / sharding.optimizer
    offloaded *= sharding.per_node
    return HostMemory(loading, offloaded, offloaded + written)


def disk_space(config: TrainConfig, weights: Weights, sharding: Sharding) -> DiskSpace:
    """What is written: checkpoints in their dtype, and saves from which a killed run resumes."""
    size = 4.0 if config.save_dtype == "float32" else 2.0  # bytes of a weight
    checkpoint = size * (weights.adapters if config.keep_adapter else weights.total - weights.adapters)
    # Without that state: the weights, which FSDP and DeepSpeed save twice, and DeepSpeed's float32 copy of them.
    per_weight = {"none": 4, "DDP": 4, "FSDP": 8, "ZeRO": 10 if config.dtype == "bfloat16" else 12}[sharding.method]
    save = float(per_weight * weights.trained + optimizer_state(config, weights))
    saves = (config.steps - 1) // config.resume_every if config.resume_every else 0
    best = 0
    if config.keep_best is not None:  # a new best step is written while the last one, and that of the last save, exist
        best = min(math.ceil(config.steps / config.eval_every), 3 if saves else 2) - 1
    return DiskSpace(
        finished=checkpoint,
        snapshots=checkpoint * len(config.save_at),
        best=checkpoint * best,
        conversion=(4 / size - 1) * checkpoint,
        resuming=save * min(saves, 2),
    )
