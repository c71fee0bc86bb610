"""Estimates of a run before anything is loaded: tokens, FLOPs, hours, memory, disk. Hours are rough."""

from __future__ import annotations

import copy
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel

from longshort.devices import GPUS, Gpu
from longshort.scoring.forward import without_wrappers
from longshort.training.attention import attention_implementation
from longshort.training.base import Architecture, checkpoint_gradients, random_model
from longshort.training.compat import no_packed_sequences
from longshort.training.config import TrainConfig
from longshort.training.extension.options import OPTIONS
from longshort.training.lora import add_lora, lora_modules
from longshort.training.memory import (
    DeviceMemory,
    DiskSpace,
    HostMemory,
    device_memory,
    disk_space,
    host_memory,
    keeps_gradients_of,
)
from longshort.training.optimizer_state import STATE_BYTES
from longshort.training.sharding import Sharding
from longshort.training.shifted_attention import shifted_sparse_attention
from longshort.training.trace import Trace, trace
from longshort.training.weights import Weights, weights_of

UTILIZATION = 0.4  # of a card's dense bf16 peak; what well-tuned training reaches
REFERENCE = "A100"  # where no GPU of the table is available
LONG_RUN = 1e16  # FLOPs from which a run deserves the lines: a minute or two on the reference card
GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Cost of a run."""

    config: TrainConfig
    sharding: Sharding
    tokens: int  # read in all, over both windows
    flops: float  # forward, backward and, with gradient checkpointing, the second forward
    card: str  # the GPU that the hours are for
    hours: float  # on one of it
    on_cpu: bool  # whether the device is the machine itself
    weights: Weights
    is_traced: bool  # whether the forward could be traced; activations are a rule of thumb where it could not
    device: DeviceMemory
    host: HostMemory
    disk: DiskSpace

    def __str__(self) -> str:
        """Some lines of at most 80 columns."""
        lines = [
            f"Estimate for {self.sharding}:",
            f"  {self.weights.total / 1e6:,.1f}M weights, {self.weights.trained / 1e6:,.1f}M of them trained",
            f"  about {self.tokens / 1e6:,.1f}M tokens, {self.flops:.1e} FLOPs, {self.hours:,.1f} hours "
            f"on one {self.card} at {UTILIZATION:.0%}",
            f"  {'memory of each device, GiB':<40}{'peak':>12}{self.device.peak / GIB:>10,.2f}",
        ]
        names = {
            "optimizer": self._optimizer,
            "cast_copies": "autocast's copies of weights",
            "gathered": "gathered weights",
        }
        if not self.is_traced:
            names["activations"] = "activations (rule of thumb)"
        for name, value in self.device.parts.items():
            if value:
                lines.append(f"    {names.get(name, name):<50}{value / GIB:>10,.2f}")
        host, disk = self.host, self.disk
        lines += [
            f"  {'memory of the machine, GiB':<40}{'peak':>12}{host.peak / GIB:>10,.2f}",
            f"    loading {host.loading / GIB:,.2f}, training {host.training / GIB:,.2f}, "
            f"saving {host.saving / GIB:,.2f}",
            f"  {'disk, GiB':<40}{'peak':>12}{disk.peak / GIB:>10,.2f}",
            f"    checkpoint {disk.finished / GIB:,.2f}, snapshots {disk.snapshots / GIB:,.2f}, "
            f"saves to resume from {disk.resuming / GIB:,.2f}",
        ]
        if disk.best:
            lines.append(f"    earlier best steps {disk.best / GIB:,.2f}")
        return "\n".join(lines)

    @property
    def _optimizer(self) -> str:
        name = self.config.optim
        if name.startswith("adamw_torch") and STATE_BYTES.get(name) == STATE_BYTES["adamw_torch"]:
            return "AdamW"
        return f"optimizer ({name if name == 'adafactor' or name in STATE_BYTES else 'as AdamW'})"


def estimate(
    config: TrainConfig,
    architecture: Architecture,
    sharding: Sharding | None = None,
    *,
    quantizes: bool = False,
    on_cpu: bool = True,
    traces: bool = True,
) -> Estimate:
    """Estimate a run from its settings and the config of its model: no weights are read or allocated.

    FLOPs per token are 2 per weight in the forward, 2 per weight for the gradient of the activations, and 2 per
    trained weight for its own (Kaplan et al., 2020); attention adds 2 · layers · width · T to a forward, half of
    the full product for causality, and twice that to a backward. Activations are those of a traced forward and
    backward (`trace`), or where an architecture cannot be traced, 34 bytes per token, layer and unit of width in
    half precision (Korthikanti et al., 2022), and the attention matrix where attention is eager.

    Args:
        config: the settings.
        architecture: the model's config and class.
        sharding: how accelerate divides the model; by default one device.
        quantizes: whether the base is held in 4 bits.
        on_cpu: whether the run has no device but the machine itself.
        traces: run the trace, which takes a second for a small model and some ten for one of 7B.
    """
    sharding = sharding or Sharding()
    architecture = replace(architecture, config=copy.deepcopy(architecture.config))  # building changes it
    sizes = architecture.config.get_text_config()
    model = _empty_model(config, architecture)
    causal_lm: Any = without_wrappers(model)
    weights = weights_of(model, causal_lm, quantizes)
    tokens, flops = _flops(config, causal_lm, weights, sizes)
    traced = _traced(config, model, causal_lm, weights, sharding) if traces else None
    is_traced = traced is not None
    if traced is None:
        traced = _rule_of_thumb(config, sizes, weights, sharding)
    on_device = device_memory(
        config,
        weights,
        sharding,
        traced,
        width=sizes.hidden_size,
        vocabulary=sizes.vocab_size,
        device="cpu" if on_cpu else "cuda",
    )
    card, gpu = _gpu_named(torch.cuda.get_device_name() if torch.cuda.is_available() else REFERENCE)
    return Estimate(
        config,
        sharding,
        tokens,
        flops,
        card,
        flops / (UTILIZATION * gpu.flops_per_second) / 3600,
        on_cpu,
        weights,
        is_traced,
        on_device,
        host_memory(config, weights, sharding, on_device, on_cpu=on_cpu),
        disk_space(config, weights, sharding),
    )


def _empty_model(config: TrainConfig, architecture: Architecture) -> nn.Module:
    """The model on the meta device, ready to train."""
    with torch.device("meta"):
        base = random_model(config, architecture)
        if config.gradient_checkpointing:
            checkpoint_gradients(base)
        model: nn.Module = base
        if config.rank_of_adapters:
            rank, alpha, dropout = config.rank_of_adapters, config.lora_alpha, config.lora_dropout
            model = add_lora(base, rank, alpha, dropout, architecture.trained_in_full, **lora_modules(config))
    return model.train()


def _flops(
    config: TrainConfig, causal_lm: PreTrainedModel, weights: Weights, sizes: PretrainedConfig
) -> tuple[int, float]:
    """Tokens and FLOPs of all steps."""
    embedding = causal_lm.get_input_embeddings().weight
    output = causal_lm.get_output_embeddings()
    tied = output is not None and output.weight is embedding
    looked_up = 0 if tied else embedding.numel()  # rows are picked, not multiplied
    multiplied = weights.total - looked_up
    multiplied_trained = weights.trained - (looked_up if embedding.requires_grad else 0)
    tokens = config.steps * config.global_batch_size * config.windows * config.train_length
    attention = 2 * sizes.num_hidden_layers * sizes.hidden_size * config.train_length
    forward = 2 * multiplied + attention
    backward = 2 * multiplied + 2 * multiplied_trained + 2 * attention
    return tokens, float(tokens * (forward * (2 if config.gradient_checkpointing else 1) + backward))


def _traced(
    config: TrainConfig, model: nn.Module, causal_lm: PreTrainedModel, weights: Weights, sharding: Sharding
) -> Trace | None:
    half = config.dtype == "bfloat16"
    casts_weights = half and sharding.method in ("FSDP", "ZeRO")  # these hold bfloat16 weights in a forward
    halved: set[Tensor] = set(model.parameters()) if casts_weights else set()
    if half and weights.quantized:  # dequantized layer by layer, in bfloat16
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        halved = {module.weight for module in linear if not module.weight.requires_grad}
    attention: AbstractContextManager[None] = nullcontext()
    try:
        if config.extension == "longqlora":
            groups = (config.extension_options or {}).get("groups", OPTIONS["longqlora"]["groups"])
            attention = shifted_sparse_attention(causal_lm, groups)
        elif config.attn_implementation in ("eager", "sdpa"):  # the others need a GPU, and hold what sdpa does
            attention = attention_implementation(causal_lm, config.attn_implementation)
        with FakeTensorMode(allow_non_fake_inputs=True), no_packed_sequences(), attention:
            _without_data(model, halved)
            return trace(
                model,
                config.windows * config.batch_size,
                config.train_length,
                autocast=half and not casts_weights,
                keeps_gradients=keeps_gradients_of(config, sharding),
                dense_alpha=None if config.is_fused else config.alpha,
            )
    except Exception:  # an operation whose result depends on values, or code that fake tensors do not know
        return None


def _without_data(model: nn.Module, halved: Collection[Tensor]) -> None:
    """Put fake tensors of the CPU in place of those on the meta device, some of them in bfloat16."""
    replaced: dict[Tensor, Tensor] = {}  # weights that modules share stay shared
    for module in model.modules():
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None:
                continue
            if value not in replaced:
                fake = torch.empty(value.shape, dtype=torch.bfloat16 if value in halved else value.dtype)
                is_parameter = isinstance(value, nn.Parameter)
                replaced[value] = nn.Parameter(fake, value.requires_grad) if is_parameter else fake
            setattr(module, name, replaced[value])


def _rule_of_thumb(config: TrainConfig, sizes: PretrainedConfig, weights: Weights, sharding: Sharding) -> Trace:
    half = config.dtype == "bfloat16"
    tokens = config.batch_size * config.windows * config.train_length
    per_layer = 2 if config.gradient_checkpointing else 17  # units of width kept per token and layer
    activations = tokens * sizes.hidden_size * (2 if half else 4) * per_layer * sizes.num_hidden_layers
    if config.attn_implementation == "eager":  # the softmax, and in half precision its copy; of one layer recomputed
        matrix = config.batch_size * config.windows * sizes.num_attention_heads * config.train_length**2
        kept_layers = 1 if config.gradient_checkpointing else sizes.num_hidden_layers
        activations += matrix * (6 if half else 4) * kept_layers
    casts = 2 * weights.linear if half and sharding.method in ("none", "DDP") else 0
    logits = 0 if config.is_fused else 3 * 4 * tokens * sizes.vocab_size
    new_gradients = 0 if keeps_gradients_of(config, sharding) else 4 * weights.trained
    return Trace(activations, casts, activations + casts + logits, activations + new_gradients)


def _gpu_named(name: str) -> tuple[str, Gpu]:
    """The first card of the table that torch's name of a card contains, such as "NVIDIA GeForce RTX 4090"."""
    compact = name.lower().replace(" ", "")
    found = next(((key.upper(), gpu) for key, gpu in GPUS.items() if key in compact), None)
    return found or (REFERENCE, GPUS[REFERENCE.lower()])
