"""CLEX: the code of Chen et al. (ICLR 2024) at frequencies, training positions, logits and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longshort.training.extension.options import OPTIONS
from official.clex_layers import LAYER, MAX_T, OFFICIAL_STEP, ORIGINAL, official_layer, our_layer, solve_in_float64
from official.clex_llama import MODEL, logits, training
from official.clex_positions import DRAWS, SCALES, distribution, positions, scales
from official.source import Checkout
from official.table import Comparison, Difference, of_tensors

STEP: float = OPTIONS["clex"]["step"]

SOLVER = f"By default ours solves with step {STEP:g}, at a tenth of the cost; the official code with {OFFICIAL_STEP:g}."
RUNGE_KUTTA = (
    "The official solver (torchdiffeq's rk4) is the 3/8 rule, ours the classical Runge-Kutta method. The official "
    "code integrates whole log frequencies in float32, ours only their learned part, which rounds less."
)
ROUNDING = "Most of the difference in the float32 rows is the rounding of the official solver."
THETA = (
    "The official ODE uses θ = 10,000 in its network's input, whatever the base's θ; ours uses the base's, as in the "
    "paper. `import-clex` keeps 10,000 for published checkpoints (`network_theta`); see the next rows."
)
CALL = (
    "The official Llama passes four arguments to its CLEX layer, which takes three and fails; this comparison passes "
    "the three."
)
LOG_SCALE = (
    " With FlashAttention and `log_scale` (off in the training script, on by default in the config) the official "
    "code also scales queries by ln n / ln L0; its other attentions do not, and ours does not."
)
LAST = (
    "Beyond L0 the official code rounds the last position down, after the division, so that other positions can equal "
    "or exceed it; in ours the last position is the largest."
)
DRAWN = (
    "The official code draws one t per forward for all rows; ours draws one per sequence, shared by its two windows."
)


def comparisons() -> list[Comparison]:
    """The rows."""
    ode = f"head of 128, W_down random, t = 1, 2, ..., {MAX_T}, silu and tanh"
    tiny = f"tiny Llama, L0 {ORIGINAL}, lengths of t · L0 for t = 1, 2, 3, 5, 16"
    rows = []

    def row(quantity: str, compared: str, measure: Any, why: str = "", file: str = LAYER) -> None:
        rows.append(Comparison("clex", quantity, compared, "clex", file, measure, why))

    row("log frequencies, equal steps", f"{ode}, θ 10,000, step {OFFICIAL_STEP}", _frequencies(), RUNGE_KUTTA)
    exact = f"{ode}, θ 10,000, step {OFFICIAL_STEP}; official ODE in float64, ours in float32"
    row("log frequencies, equal steps, float64", exact, _frequencies(float64=True), ROUNDING)
    row("log frequencies, default steps", f"{ode}, θ 10,000", _frequencies(step=STEP), SOLVER)
    row("log frequencies, θ 500,000", f"{ode}, step {OFFICIAL_STEP}", _frequencies(500_000.0), THETA)
    mended = f"{ode}, step {OFFICIAL_STEP}, θ passed on to the official ODE"
    row("log frequencies, θ 500,000 for both", mended, _frequencies(500_000.0, mend=True))
    imported = f"{ode}, step {OFFICIAL_STEP}; ours with the `network_theta` that `import-clex` sets"
    row("log frequencies, θ 500,000, imported", imported, _frequencies(500_000.0, network_theta=10_000.0))
    weights = f"{ode}; of a random weighting of the log frequencies, W_up and W_down"
    row("gradients of the ODE's weights, equal steps", f"{weights}, step {OFFICIAL_STEP}", _gradients(OFFICIAL_STEP))
    row("gradients of the ODE's weights, default steps", weights, _gradients(STEP), SOLVER)
    drawn = "the same subset drawn, t = 2, 3, ..., 16"
    row("training positions, L = L0", f"{ORIGINAL} tokens, {drawn}", positions(ORIGINAL))
    row("training positions, L = 4 · L0", f"{4 * ORIGINAL} tokens, {drawn}", positions(4 * ORIGINAL), LAST)
    population = f"{ORIGINAL} tokens, {DRAWS} draws for each t = 2, 3, ..., 16; Kolmogorov-Smirnov distance of the "
    population += f"positions, by chance up to {1.36 * (2 / DRAWS / ORIGINAL) ** 0.5:.3f} for each t"
    row("distribution of training positions", population, distribution)
    chance = 1.96 * (2 / SCALES / MAX_T) ** 0.5
    row("distribution of t", f"{SCALES:,} draws; share of each t, by chance up to {chance:.4f}", scales, DRAWN)
    row("logits, equal steps", f"{tiny}, step {OFFICIAL_STEP}", logits(OFFICIAL_STEP), CALL, MODEL)
    exact = f"{tiny}, step {OFFICIAL_STEP}; official ODE in float64"
    row("logits, equal steps, float64", exact, logits(OFFICIAL_STEP, float64=True), ROUNDING, MODEL)
    row("logits, default steps", tiny, logits(STEP), SOLVER + LOG_SCALE, MODEL)
    trained = f"tiny Llama in training, t = 1, 2, 3, 5, 16, the same positions, step {OFFICIAL_STEP}"
    row("training loss", trained, training(with_gradients=False), "", MODEL)
    trained += "; all weights and the ODE's"
    row("gradients of the training loss", trained, training(with_gradients=True), "", MODEL)
    return rows


def _both_layers(checkout: Checkout, theta: float, step: float, mend: bool) -> Iterator[tuple[Any, Any]]:
    for activation in ("silu", "tanh"):
        ours = our_layer(theta, activation, step)
        official = official_layer(checkout, ours)
        if mend:
            ode = official.proj_func
            ode.get_time_embedding = partial(ode.get_time_embedding, base=theta)
        yield official, ours


def _solved(official: Any) -> Tensor:
    """Log frequencies at t = 1 .. MAX_T, [MAX_T, d/2]."""
    times = torch.arange(1.0, MAX_T + 1)
    frequencies: Tensor = official.get_continuous_freq(times, torch.empty(0), times.device)
    return frequencies.log()


def _frequencies(
    theta: float = 10_000.0,
    step: float = OFFICIAL_STEP,
    mend: bool = False,
    float64: bool = False,
    network_theta: float | None = None,
) -> Callable[[Checkout], Difference]:
    def pairs(checkout: Checkout) -> Iterator[tuple[Tensor, Tensor]]:
        for official, ours in _both_layers(checkout, theta, step, mend):
            if float64:
                solve_in_float64(official)
            if network_theta:
                ours.config.rope_parameters["network_theta"] = network_theta
            yield _solved(official), torch.stack([ours.frequencies(float(t)) for t in range(1, MAX_T + 1)]).log()

    return lambda checkout: of_tensors(pairs(checkout))


def _gradients(step: float) -> Callable[[Checkout], Difference]:
    def measure(checkout: Checkout) -> Difference:
        weights = torch.randn(MAX_T, 64, generator=torch.Generator().manual_seed(6))
        pairs: list[tuple[Tensor, Tensor]] = []
        for official, ours in _both_layers(checkout, 10_000.0, step, mend=False):
            expected = torch.autograd.grad((_solved(official) * weights).sum(), [*official.proj_func.parameters()])
            frequencies = torch.stack([ours.frequencies(float(t)) for t in range(1, MAX_T + 1)])
            actual = torch.autograd.grad((frequencies.log() * weights).sum(), [ours.up, ours.down])
            pairs += zip(expected, actual, strict=True)
        return of_tensors(pairs)

    return measure
