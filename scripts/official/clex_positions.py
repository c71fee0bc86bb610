"""CLEX: what a training forward draws, t and positions."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longshort.training.extension.clex import clex_positions
from official.clex_layers import MAX_T, ORIGINAL, official_layer, tiny_clex
from official.source import Checkout
from official.table import Difference, of_tensors

DRAWS = 400  # of positions for each t
SCALES = 100_000  # draws of t


class _Drawn:
    """Stands in for a numpy generator that draws a given subset."""

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner.numpy()

    def choice(self, population: Any, size: int, **_: Any) -> Any:
        if size != len(self.inner) or not np.isin(self.inner, population).all():
            raise ValueError("the official subset is not one of ours")
        return self.inner


def _official_positions(layer: Any, length: int, t: int) -> tuple[Tensor, Tensor]:
    """The positions of one training forward, and the subset of them that it drew, before any division."""
    drawn, used = [], []
    layer.sample_random_times = lambda *_: torch.tensor([t])
    layer.get_random_position_ids = lambda *sizes, **named: (
        drawn.append(type(layer).get_random_position_ids(layer, *sizes, **named)) or drawn[-1]
    )
    layer.get_continuous_freq = lambda _, positions, __: used.append(positions) or torch.zeros(length, layer.dim)
    layer(torch.empty(0), length, do_train=True)
    return used[0], drawn[0] + 1


def _our_positions(rotary: Any, drawn: Tensor, t: int) -> Tensor:
    """The positions at which our model rotates, from the angles of its lowest frequency, which stay below π."""
    rotary.set_scale(torch.tensor([t]), drawn[None])
    cos, sin = rotary(torch.empty(1), drawn[None])  # [1, T, d] each
    angles: Tensor = torch.atan2(sin, cos)[0, :, -1]
    return angles / rotary.frequencies_of_rows(torch.tensor([t]))[0, -1]


def positions(length: int) -> Callable[[Checkout], Difference]:
    """Return what compares the positions of `length` tokens, both models having drawn the same subset."""

    @torch.no_grad()
    def measure(checkout: Checkout) -> Difference:
        torch.manual_seed(0)
        rotary = tiny_clex().model.rotary_emb
        layer = official_layer(checkout, rotary)
        pairs = []
        for t in range(2, MAX_T + 1):
            official, inner = _official_positions(layer, length, t)
            drawn = clex_positions(length, t, _Drawn(inner))  # type: ignore[arg-type]  # a generator that draws what the official code drew
            pairs.append((official, _our_positions(rotary, drawn, t)))
        return of_tensors(pairs)

    return measure


def distribution(checkout: Checkout) -> Difference:
    """Kolmogorov and Smirnov's distance of the drawn positions, t by t."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    layer = official_layer(checkout, tiny_clex().model.rotary_emb)
    pairs = []
    for t in range(2, MAX_T + 1):
        official = torch.stack([_official_positions(layer, ORIGINAL, t)[0] for _ in range(DRAWS)])
        ours = torch.stack([clex_positions(ORIGINAL, t, generator) for _ in range(DRAWS)])
        pairs.append(tuple(_share_up_to(drawn, ORIGINAL * t) for drawn in (official, ours)))
    return of_tensors(pairs)


def _share_up_to(positions: Tensor, end: int) -> Tensor:
    counts = torch.bincount(positions.long().flatten(), minlength=end)
    return counts.cumsum(0) / positions.numel()


def scales(checkout: Checkout) -> Difference:
    """Compare how often each t is drawn."""
    from longshort.training.run import _clex_positions  # draws t as well, which nothing public does

    torch.manual_seed(0)
    model = tiny_clex()
    layer = official_layer(checkout, model.model.rotary_emb)
    draw = _clex_positions(SimpleNamespace(is_clex=True, config=model.config), SimpleNamespace(train_length=2))
    generator = np.random.default_rng(0)
    official = torch.tensor([int(layer.sample_random_times(layer.max_t + 1, "cpu")) for _ in range(SCALES)])
    ours = torch.tensor([draw(generator)[0] for _ in range(SCALES)])
    shares = (torch.bincount(drawn, minlength=MAX_T + 1) / SCALES for drawn in (official, ours))
    return of_tensors([tuple(shares)])  # type: ignore[list-item]  # a tuple of two, which mypy cannot count
