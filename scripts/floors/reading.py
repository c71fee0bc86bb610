"""One model in float32, with rounded weights, and in half precision, and the divergences between its two contexts."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from longshort.scoring.divergences import jeffreys, jensen_shannon

CHUNK = 32  # positions whose logits are held at once


class Checkpoint:
    """A checkpoint in float32, and copies of it in the half-precision dtypes as they are asked for.

    Args:
        folder: a checkpoint in safetensors.
        native: compute half-precision products with torch. By default products are computed in float32 and rounded, as
            GPUs do; CPUs are slow at it.
    """

    def __init__(self, folder: Path, native: bool) -> None:
        self.name = folder.name
        self.native = native
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.special_tokens = torch.tensor(self.tokenizer("")["input_ids"], dtype=torch.long)  # before a text: BOS
        self.float32: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._copies: dict[torch.dtype, tuple[Any, Any]] = {}

    def in_dtype(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """The model in half precision, and in float32 with the same rounded weights."""
        if dtype not in self._copies:
            half = copy.deepcopy(self.float32).to(dtype)
            rounded = copy.deepcopy(half).float()
            if not self.native:
                for module, exact in zip(half.base_model.modules(), rounded.base_model.modules(), strict=True):
                    if type(module) is nn.Linear:
                        module.forward = partial(_product, exact)
            self._copies = {dtype: (half, rounded)}
        return self._copies[dtype]


def _product(exact: nn.Linear, hidden: Tensor) -> Tensor:
    """A half-precision linear layer with float32 accumulation; `exact` has its weights in float32."""
    return functional.linear(hidden.float(), exact.weight, exact.bias).to(hidden.dtype)


class Reading:
    """The hidden states of some positions of a context, and the LM head that follows them."""

    def __init__(self, model: Any, tokens: Tensor, positions: Tensor, shift: int = 0, masked: bool = False) -> None:
        """Read tokens [T]; `positions` [K] count from the end, -1 is the last one."""
        ids = torch.arange(len(tokens))[None] + shift  # [1, T]
        inputs: dict[str, Tensor] = {}
        tokens = tokens[None]
        if masked:
            mask = torch.ones(1, tokens.shape[1] + 1, dtype=torch.long)
            mask[:, 0] = 0
            tokens = torch.cat([tokens[:, :1], tokens], dim=1)
            ids = torch.cat([ids[:, :1], ids], dim=1)
            inputs["attention_mask"] = mask
        started = time.perf_counter()
        output = model.base_model(input_ids=tokens, position_ids=ids, use_cache=False, **inputs)
        self.seconds = time.perf_counter() - started
        self.hidden: Tensor = output.last_hidden_state[0, positions].float()  # [K, H]
        self.weight: Tensor = model.get_output_embeddings().weight

    def log_probabilities(self, chunk: slice) -> Tensor:
        """Of a chunk of the positions, [C, V], from float32 logits."""
        return functional.linear(self.hidden[chunk], self.weight.float()).log_softmax(-1)


def compare(readings: dict[str, Reading], pairs: dict[str, tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Mean Jeffreys and Jensen-Shannon divergence of pairs of readings over their positions, in nats."""
    num_positions = len(next(iter(readings.values())).hidden)
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in pairs}
    for start in range(0, num_positions, CHUNK):
        chunk = slice(start, start + CHUNK)
        log_p = {name: reading.log_probabilities(chunk) for name, reading in readings.items()}
        for name, (first, second) in pairs.items():
            divergences = jeffreys(log_p[first], log_p[second]), jensen_shannon(log_p[first], log_p[second])
            sums[name] += torch.stack([values.double().sum() for values in divergences])
    return {name: (float(total[0]) / num_positions, float(total[1]) / num_positions) for name, total in sums.items()}


@torch.no_grad()
def measure(
    checkpoint: Checkpoint, tokens: Tensor, offset: int, kept: int, dtype: torch.dtype, shifts: Sequence[int]
) -> list[dict[str, Any]]:
    """One cell: every quantity of one document, whose tokens [L] are the longer context."""
    half, rounded = checkpoint.in_dtype(dtype)
    length = len(tokens)
    in_range = length - offset - (length + 1) // 2 + 1
    steps = torch.linspace(0, in_range - 1, min(kept, in_range)).round().long()
    positions = -1 - steps  # [K], from the end
    models = {"float32": checkpoint.float32, "rounded": rounded, "half": half}
    short = tokens[offset:].clone()
    short[: len(checkpoint.special_tokens)] = checkpoint.special_tokens
    windows = {"long": tokens, "short": short}
    readings = {
        f"{name} {side}": Reading(model, window, positions)
        for name, model in models.items()
        for side, window in windows.items()
    }
    readings |= {f"shift {shift}": Reading(half, tokens, positions, shift=shift) for shift in shifts}
    readings["aligned"] = Reading(half, windows["short"], positions, shift=offset)
    readings["masked"] = Reading(half, tokens, positions, masked=True)
    pairs = {name: (f"{name} long", f"{name} short") for name in models}
    pairs |= {f"shift {shift}": ("half long", f"shift {shift}") for shift in shifts}
    pairs["aligned"] = ("half short", "aligned")
    pairs["masked"] = ("half long", "masked")
    pairs |= {f"reread {side}": (f"half {side}", f"rounded {side}") for side in windows}
    return [
        {
            "positions": len(positions),
            "quantity": name,
            "jeffreys": values[0],
            "js": values[1],
            "seconds": readings[pairs[name][1]].seconds,
        }
        for name, values in compare(readings, pairs).items()
    ]
