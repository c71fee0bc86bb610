"""Numbers of weights of a model that is to be trained, by what memory and disk need to know of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ADAPTERS = (".lora_", ".modules_to_save.")  # in the names that PEFT gives to the weights it adds
NF4_BYTES = 0.5 + (8 / 64 + 32 / (64 * 256)) / 8  # per weight, with its twice quantized constants (QLoRA)


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
