"""Bytes that a run needs: on each device, in the memory of the machine, and on the disk."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from longshort.training.closed_form import NUM_BUFFERS
from longshort.training.config import TrainConfig
from longshort.training.fused import chunk_sizes
from longshort.training.sharding import Sharding
from longshort.training.trace import Trace

ADAPTERS = (".lora_", ".modules_to_save.")  # in the names that PEFT gives to the weights it adds
NF4_BYTES = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8  # per weight, with its twice quantized constants (QLoRA)

# Bytes per trained weight of an optimizer's state, by transformers' name: one, two or three averages in 4 bytes, 1 or
# half a byte. Of others as much as AdamW's is assumed. Adafactor's is in `optimizer_state`.
STATE_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), 8.0),
    **dict.fromkeys(("adamw_anyprecision", "paged_adamw_32bit", "schedule_free_adamw", "schedule_free_radam"), 8.0),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 2.0),
    "adamw_torch_4bit": 1.0,
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), 12.0),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3.0),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), 4.0),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1.0),
    **dict.fromkeys(("adagrad", "rmsprop", "schedule_free_sgd"), 4.0),
    "sgd": 0.0,
}


@dataclass(frozen=True)
class Weights:
    """Numbers of weights, and the bytes that a device holds of them unsharded."""

    total: int
    trained: int
    adapters: int  # of LoRA, with its copies of modules that are trained in full; no part of a merged checkpoint
    quantized: int  # in 4 bits
    head: int  # of the LM head, trained or not
    head_is_trained: bool
    largest_block: int  # of a decoder layer
    outside: int  # in no decoder layer
    embedded: int  # trained ones of embeddings
    factored: int  # rows and columns of the trained ones, for which Adafactor has a number each
    linear: int  # trained ones that autocast copies
    largest_linear: int

    @property
    def stored(self) -> float:
        """Bytes as they are loaded: float32, or 4 bits."""
        return 4 * (self.total - self.quantized) + NF4_BYTES * self.quantized


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
    best: float  # earlier best steps in OUTPUT.partial, beside the one that becomes the checkpoint
    conversion: float  # a checkpoint is written in float32 before it is converted to its own dtype
    resuming: float  # in OUTPUT.partial, with the optimizer's state; two saves exist while the older is replaced

    @property
    def peak(self) -> float:
        """The most at one time."""
        return self.finished + self.snapshots + self.best + self.conversion + self.resuming


def weights_of(model: nn.Module, causal_lm: PreTrainedModel, quantizes: bool) -> Weights:
    """Count the weights of a model (without data), with its adapters; `causal_lm` is the one inside."""
    parameters = dict(model.named_parameters())
    head_module = causal_lm.get_output_embeddings()
    head = None if head_module is None else head_module.weight
    names = tuple(getattr(causal_lm, "_no_split_modules", None) or ())
    blocks = [module for module in causal_lm.modules() if type(module).__name__ in names]
    in_blocks = [sum(value.numel() for value in block.parameters()) for block in blocks]
    linear = {
        value
        for module in model.modules()
        if isinstance(module, nn.Linear | Conv1D)
        for value in module.parameters(recurse=False)
        if value is not head and value.dim() == 2
    }
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    frozen = [value.numel() for value in linear if not value.requires_grad]
    total = sum(value.numel() for value in parameters.values())
    return Weights(
        total=total,
        trained=sum(value.numel() for value in parameters.values() if value.requires_grad),
        adapters=sum(value.numel() for name, value in parameters.items() if any(part in name for part in ADAPTERS)),
        quantized=sum(frozen) if quantizes else 0,
        head=0 if head is None else head.numel(),
        head_is_trained=head is not None and head.requires_grad,
        largest_block=max(in_blocks, default=0),
        outside=total - sum(in_blocks),
        embedded=sum(value.numel() for value in embeddings if value.requires_grad),
        factored=sum(_rows_and_columns(value) for value in parameters.values() if value.requires_grad),
        linear=sum(value.numel() for value in linear if value.requires_grad),
        largest_linear=max((value.numel() for value in linear), default=0),
    )


def _rows_and_columns(weight: Tensor) -> int:
    if weight.dim() < 2:
        return weight.numel()
    return weight.numel() // weight.shape[-1] + weight.numel() // weight.shape[-2]


def optimizer_state(config: TrainConfig, weights: Weights) -> float:
    """Bytes of an optimizer's state of all trained weights.

    Source: Shazeer & Stern (2018) for Adafactor, which keeps no moment of the gradient here; Dettmers et al. (2022)
    for 8 bits, with embeddings in 32.
    """
    name = config.optim
    if name == "adafactor":
        return 4.0 * weights.factored
    per_weight = STATE_BYTES.get(name, 8.0)
    if name in ("sgd", "rmsprop"):
        per_weight += 4 * _more_averages((config.trainer_arguments or {}).get("optim_args"))
    if name in STATE_BYTES and "8bit" in name and name != "adamw_torch_8bit":  # bitsandbytes'
        return per_weight * (weights.trained - weights.embedded) + 4 * per_weight * weights.embedded
    return per_weight * weights.trained


def _more_averages(arguments: Any) -> int:
    """How many averages per weight PyTorch's SGD or RMSprop has besides its own, by transformers' `optim_args`."""
    given = dict(pair.partition("=")[::2] for pair in str(arguments or "").replace(" ", "").split(","))
    return (given.get("momentum", "0").strip("0.") != "") + (given.get("centered", "").lower() in ("true", "1", "yes"))


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
        traced: what a forward and a backward hold beside them.
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
