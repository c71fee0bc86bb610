"""EABF: the code of Zhang et al. (2024), and LongPPL's copy of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longshort.training.extension.modeling_eabf import query_scale
from official.models import extended, random_tokens, tiny_llama
from official.source import Checkout
from official.table import Comparison, Difference, of_tensors

FILES = {"entropy-abf": "patch/EABF.py", "longppl": "finetune/patch/EABF.py"}
ORIGINAL_LENGTH = 4096  # written into the official code
THETA = 500_000.0  # as well
POSITIONS = range(ORIGINAL_LENGTH - 64, ORIGINAL_LENGTH * 8, 37)  # of the tokens: none, then more and more scaled

BFLOAT16 = (
    "Ours multiplies in float32 and rounds the product. The official code first rounds the scale to bfloat16, which "
    "has 1, 1.0078, 1.0156 and so on."
)
UNSCALED = (
    "`unscaled_layers` is 2 by default, as in the paper. The official `apply_eabf` means the same, but sets an "
    "attribute of the attention that its forward does not read: all layers are scaled, also in LongPPL's training. The "
    "preset paper-eabf follows that code, with 0."
)


def comparisons() -> list[Comparison]:
    """The rows of both repositories."""
    rows = []
    for name, file in FILES.items():

        def row(quantity: str, compared: str, measure: Any, why: str = "", name: str = name, file: str = file) -> None:
            rows.append(Comparison("eabf", quantity, compared, name, file, measure, why))

        span = f"{len(POSITIONS)} positions to {POSITIONS[-1]:,}"
        row("scaled queries, float32", f"`apply_rotary_pos_emb_scale`, {span}", _queries(torch.float32))
        row("scaled queries, bfloat16", f"the same in bfloat16, {span}", _queries(torch.bfloat16), BFLOAT16)
        model = f"tiny Llama, θ = 500,000, {span}"
        row("logits, all layers scaled", f"{model}; ours with `unscaled_layers` 0", _logits(0, 0))
        row("logits, first 2 layers not scaled", f"{model} of 4 layers; official functions per layer", _logits(2, 2))
        row(
            "logits, defaults",
            f"{model} of 4 layers; the official code as it runs, ours by default",
            _logits(0, 2),
            UNSCALED,
        )
    return rows


def _queries(dtype: torch.dtype) -> Callable[[Checkout], Difference]:
    def measure(checkout: Checkout) -> Difference:
        official = checkout.definitions(FILES[checkout.name])
        generator = torch.Generator().manual_seed(0)
        query, key = (torch.randn(1, 4, len(POSITIONS), 16, generator=generator, dtype=dtype) for _ in range(2))
        ids = torch.tensor([*POSITIONS])[None]  # [1, T]
        cos, sin = tables = _tables(16, dtype)
        expected = official["apply_rotary_pos_emb_scale"](query, key, *tables, ids)
        rotated, ours_key = apply_rotary_pos_emb(query, key, cos[0, 0][ids], sin[0, 0][ids])
        scale = query_scale(ids, ORIGINAL_LENGTH)[:, None, :, None]  # [1, 1, T, 1]
        return of_tensors([(expected[0], (rotated * scale).to(dtype)), (expected[1], ours_key)])

    return measure


def _logits(official_unscaled: int, ours_unscaled: int) -> Callable[[Checkout], Difference]:
    def measure(checkout: Checkout) -> Difference:
        official = checkout.definitions(FILES[checkout.name])
        layers = 4 if ours_unscaled else 2
        stock = tiny_llama(ORIGINAL_LENGTH, num_hidden_layers=layers)
        options = {"unscaled_layers": ours_unscaled}
        ours = extended(stock, "eabf", train_length=ORIGINAL_LENGTH * 2, factor=8.0, options=options)
        raised = tiny_llama(ORIGINAL_LENGTH, theta=THETA, num_hidden_layers=layers)
        raised.load_state_dict(stock.state_dict())
        tokens, ids = random_tokens(1, len(POSITIONS)), torch.tensor([*POSITIONS])[None]
        with torch.no_grad():
            actual = ours(input_ids=tokens, position_ids=ids).logits
            with _official_rotation(official, ids, official_unscaled):
                expected = raised(input_ids=tokens, position_ids=ids).logits
        return of_tensors([(expected, actual)])

    return measure


@contextmanager
def _official_rotation(official: dict[str, Any], position_ids: Tensor, unscaled: int) -> Iterator[None]:
    """Let the stock Llama rotate with the official functions, those without a scale in its first layers."""
    calls = 0

    def rotate(query: Tensor, key: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        name = "apply_rotary_pos_emb_old" if calls < unscaled else "apply_rotary_pos_emb_scale"
        calls += 1
        rotated: tuple[Tensor, Tensor] = official[name](
            query, key, *_tables(query.shape[-1], query.dtype), position_ids
        )
        return rotated

    modeling_llama.apply_rotary_pos_emb = rotate
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = apply_rotary_pos_emb


def _tables(dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cos and sin of all positions as transformers had them then, [1, 1, P, d] each."""
    inverse = 1.0 / THETA ** (torch.arange(0, dim, 2).float() / dim)
    angles = torch.outer(torch.arange(POSITIONS.stop).float(), inverse)
    angles = torch.cat((angles, angles), -1)[None, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)
