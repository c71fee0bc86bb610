"""Cost estimates of a run before it starts: tokens, FLOPs, memory, hours. They are rough."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from longshort.devices import GPUS, Gpu
from longshort.training.config import TrainConfig

UTILIZATION = 0.4  # of a card's dense bf16 peak; what well-tuned training reaches
REFERENCE = "A100"  # where no GPU of the table is available
LONG_RUN = 1e16  # FLOPs from which a run deserves the line: a minute or two on the reference card


@dataclass(frozen=True)
class Estimate:
    """Cost of a run."""

    tokens: int  # read in all, over both windows
    flops: float  # forward, backward and, with gradient checkpointing, the second forward
    memory: float  # bytes per device without sharding: weights, gradients, AdamW's state, activations, logits
    device: str  # the card the hours are for
    hours: float  # on one of it

    def __str__(self) -> str:
        return (
            f"about {self.tokens / 1e6:,.1f}M tokens, {self.flops:.1e} FLOPs, {self.memory / 2**30:,.1f} GiB "
            f"per device without sharding, {self.hours:,.1f} hours on one {self.device} at {UTILIZATION:.0%}"
        )


def estimate(config: TrainConfig, model: PreTrainedModel | PeftModel) -> Estimate:
    """Estimate a run from the sizes of its model.

    FLOPs per token are 2 per weight in the forward, 2 per weight for the gradient of the activations, and 2 per
    trained weight for its own (Kaplan et al., 2020); attention adds 2 · layers · width · T to a forward, half of
    the full product for causality, and twice that to a backward. Activations take about 34 bytes per token,
    layer and unit of width in half precision (Korthikanti et al., 2022, without the attention matrix).
    """
    sizes = model.config.get_text_config()
    width, layers, vocabulary = sizes.hidden_size, sizes.num_hidden_layers, sizes.vocab_size
    weights = [parameter.numel() for parameter in model.parameters()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is embedding
    looked_up = 0 if tied else embedding.numel()  # rows are picked, not multiplied
    multiplied = sum(weights) - looked_up
    multiplied_trained = trained - (looked_up if embedding.requires_grad else 0)

    window_tokens = config.windows * config.train_length
    tokens = config.steps * config.global_batch_size * window_tokens
    attention = 2 * layers * width * config.train_length
    forward = 2 * multiplied + attention
    backward = 2 * multiplied + 2 * multiplied_trained + 2 * attention
    flops = tokens * (forward * (2 if config.gradient_checkpointing else 1) + backward)

    size = 2 if config.dtype == "bfloat16" else 4  # bytes
    per_layer = 2 if config.gradient_checkpointing else 17  # units of width kept per token and layer
    activations = config.batch_size * window_tokens * width * size * per_layer * layers
    logits = 0 if config.is_fused else 3 * 4 * config.batch_size * window_tokens * vocabulary
    stored = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    memory = stored + 12 * trained + activations + logits

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else REFERENCE
    device, gpu = _gpu_named(name) or (REFERENCE, GPUS[REFERENCE.lower()])
    return Estimate(tokens, flops, memory, device, flops / (UTILIZATION * gpu.flops_per_second) / 3600)


def _gpu_named(name: str) -> tuple[str, Gpu] | None:
    """The first card of the table that torch's name of a card contains, such as "NVIDIA GeForce RTX 4090"."""
    compact = name.lower().replace(" ", "")
    return next(((key.upper(), gpu) for key, gpu in GPUS.items() if key in compact), None)
