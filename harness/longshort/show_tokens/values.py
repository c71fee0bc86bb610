"""The values by which tokens can be coloured, and the bounds between the colours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """A per-token value in nats.

    The bounds between the colours are the same on every page, so that pages of several checkpoints can be compared.
    """

    label: str
    definition: str
    bounds: tuple[float, ...]  # n bounds separate n + 1 colours; nats
    diverges: bool = False  # around 0, so that both signs have colours of their own


VALUES = {
    "nll": Value(
        "NLL",
        "Negative log-likelihood of the token, given the tokens of the window before it. Low: the model expected it.",
        (0.5, 1, 2, 4, 6, 9),
    ),
    "gain": Value(
        "NLL gain from the longer context",
        "NLL with the shortest context in which the token was scored, minus NLL with the context of the chosen length. "
        "Above 0 the longer context helps. Below 0 (underlined) it hurts: the model predicts the token worse although "
        "it has more context.",
        (-3, -1, -0.3, -0.1, 0.1, 0.3, 1, 3),
        diverges=True,
    ),
    "entropy": Value(
        "Entropy",
        "Entropy of the next-token distribution at this token. Low: the model is sure, whether it is right or wrong.",
        (0.5, 1, 2, 3, 4, 6),
    ),
    "jeffreys": Value(
        "Jeffreys divergence from the shorter context",
        "KL(p‖q) + KL(q‖p) between the next-token distributions of this window and of one that has the same end but "
        "starts later. High: the prediction depends on the length of the context.",
        (0.01, 0.03, 0.1, 0.3, 1, 3),
    ),
}
