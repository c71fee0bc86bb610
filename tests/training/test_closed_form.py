"""Values and gradients of the loss over a large vocabulary, against autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longshort.training.closed_form import NUM_BUFFERS, cross_entropy_block, pair_block
from longshort.training.regularizer import measure_misalignment, misalignment_loss

V = 262_144
DIVERGENCES = ("sce", "jeffreys", "js", "kl")
TARGETS = torch.tensor([[7], [9]])
WEIGHTS = torch.tensor([[0.25], [0.5]])


def large_logits(name: str) -> Tensor:
    """A long and a short side, float32, [2, 1, V]."""
    noise = torch.randn(3, 1, V, generator=torch.Generator().manual_seed(0))
    if name == "uniform":
        return torch.zeros(2, 1, V) + torch.tensor([0.0, 1.0])[:, None, None]
    if name == "flat":
        return 0.3 * noise[0] + 0.03 * noise[1:]
    return 6 * noise[0].sort(descending=True).values + 0.6 * noise[1:]  # as tokenizers number their tokens


def expected_values(logits: Tensor) -> dict[str, Tensor]:
    """In float64, each from its definition, with a graph.  logits: [2, 1, V]."""
    log_p, log_q = logits.log_softmax(-1)  # [1, V] each
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    values = {
        "entropy": -(p * log_p).sum() - (q * log_q).sum(),
        "jeffreys": ((p - q) * (log_p - log_q)).sum(),
        "kl": (p * (log_p - log_q)).sum(),
        "js": ((p * (log_p - log_m)).sum() + (q * (log_q - log_m)).sum()) / 2,
        "sce": -(p * log_q).sum() - (q * log_p).sum(),
    }
    return values | {"nll": -torch.stack([log_p[:, 7], log_q[:, 9]])}


@pytest.mark.parametrize("name", ["uniform", "flat", "by frequency"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_large_vocabulary_keeps_five_digits(name: str, divergence: str) -> None:
    logits = large_logits(name)
    exact = logits.double().requires_grad_()
    expected = expected_values(exact)
    expected_nll = (WEIGHTS * expected["nll"]).sum()
    gradient = torch.empty_like(logits)
    nll, values = pair_block(
        logits.clone(),
        TARGETS,
        WEIGHTS,
        torch.empty(NUM_BUFFERS, 1, V),
        gradient,
        divergence=divergence,
        detach="none",
        scale=0.3,
    )
    close = {"rtol": 1e-5, "atol": 1e-12}
    torch.testing.assert_close(nll.double(), expected_nll, **close)
    for value, field in zip(values[:, 0], (divergence, "entropy", "jeffreys"), strict=True):
        torch.testing.assert_close(value.double(), expected[field], **close)
    (expected_nll + 0.3 * expected[divergence]).backward()
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-9)

    nll, _ = cross_entropy_block(logits[:1].clone(), TARGETS[:1], WEIGHTS[:1], torch.empty(NUM_BUFFERS, 1, V), None)
    torch.testing.assert_close(nll.double(), WEIGHTS[0, 0] * expected["nll"][0, 0], **close)
    for function in (misalignment_loss, measure_misalignment):
        loss, entropy, jeffreys = function(*logits[:, None], 0, divergence=divergence)
        for value, field in ((loss, divergence), (entropy, "entropy"), (jeffreys, "jeffreys")):
            torch.testing.assert_close(value.double(), expected[field], **close)
