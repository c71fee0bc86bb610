"""Identities and invariances of the divergences, and of the scores built from them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longshort.scoring import divergences, score_prefix, score_suffixes

logit = st.floats(-30, 30, width=32)


@st.composite
def logit_pairs(draw: st.DrawFn, values: st.SearchStrategy[float] = logit) -> tuple[Tensor, Tensor]:
    size = draw(st.integers(2, 12))
    rows = [draw(st.lists(values, min_size=size, max_size=size)) for _ in range(2)]
    return torch.tensor(rows[0]), torch.tensor(rows[1])


class TableModel(nn.Module):
    """Logits at each position come from a table of [T, V] per context length: any pair can be staged."""

    def __init__(self, tables: dict[int, Tensor]) -> None:
        super().__init__()
        self.tables = tables
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        length = input_ids.shape[1]
        default = torch.zeros(length, next(iter(self.tables.values())).shape[-1])
        return SimpleNamespace(logits=self.tables.get(length, default).expand(len(input_ids), -1, -1))


@settings(deadline=None)
@given(logit_pairs())
def test_sce_is_entropy_plus_jeffreys(pair: tuple[Tensor, Tensor]) -> None:
    p, q = (z.double().log_softmax(-1) for z in pair)
    parts = divergences.entropy(p) + divergences.entropy(q) + divergences.jeffreys(p, q)
    torch.testing.assert_close(divergences.symmetrical_cross_entropy(p, q), parts)
    torch.testing.assert_close(divergences.jeffreys(p, q), divergences.kl(p, q) + divergences.kl(q, p))


@settings(deadline=None)
@given(logit_pairs())
def test_symmetry_bounds_and_diagonal(pair: tuple[Tensor, Tensor]) -> None:
    p, q = (z.log_softmax(-1) for z in pair)
    for function in (divergences.symmetrical_cross_entropy, divergences.jeffreys, divergences.jensen_shannon):
        torch.testing.assert_close(function(p, q), function(q, p))
    assert divergences.jeffreys(p, q) >= 0
    assert divergences.jeffreys(p, p) == 0
    assert 0 <= divergences.jensen_shannon(p, q) <= math.log(2) + 1e-6
    assert divergences.jensen_shannon(p, p) == 0
    assert divergences.entropy(p) >= -1e-6


@settings(deadline=None, max_examples=50)
@given(logit_pairs(), st.floats(-100, 100, width=32), st.integers(1, 6))
def test_scores_hold_the_identity_and_ignore_a_constant_and_the_chunks(
    pair: tuple[Tensor, Tensor], constant: float, chunk_size: int
) -> None:
    size = len(pair[0])
    tables = {4: pair[0].expand(4, -1), 3: pair[1].expand(3, -1)}
    tokens = torch.arange(5)[None] % size
    scores = score_suffixes(TableModel(tables), tokens, [4, 3], 3, pairs=[(0, 1)])
    sce = scores.cross_entropy[:, 0, 1] + scores.cross_entropy[:, 1, 0]
    parts = scores.entropy.sum(1) + scores.jeffreys[:, 0]
    torch.testing.assert_close(sce, parts, rtol=1e-4, atol=1e-5)
    assert (scores.jeffreys >= 0).all()
    assert (scores.js >= 0).all()
    assert (scores.js <= math.log(2) + 1e-6).all()
    shifted = {length: table + constant for length, table in tables.items()}
    again = score_suffixes(TableModel(shifted), tokens, [4, 3], 3, pairs=[(0, 1)], chunk_size=chunk_size)
    for field in ("nll", "entropy", "cross_entropy", "jeffreys", "js"):
        torch.testing.assert_close(getattr(again, field), getattr(scores, field), rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=50)
@given(logit_pairs(st.sampled_from([-1e4, 0.0, 1e4])))
def test_extreme_logits_stay_finite(pair: tuple[Tensor, Tensor]) -> None:
    size = len(pair[0])
    model = TableModel({4: pair[0].expand(4, -1), 3: pair[1].expand(3, -1)})
    tokens = torch.arange(5)[None] % size
    scores = score_suffixes(model, tokens, [4, 3], 3, pairs=[(0, 1)])
    assert all(getattr(scores, f).isfinite().all() for f in ("nll", "entropy", "cross_entropy", "jeffreys", "js"))
    assert score_prefix(model, tokens).isfinite().all()


def test_close_and_equal_distributions_keep_their_digits() -> None:
    """Against float64, over a vocabulary so large that sums of a whole row would lose what js and jeffreys are."""
    generator = torch.Generator().manual_seed(0)
    tables = torch.randn(2, 1, 32_000, generator=generator)
    tables[1] = tables[0] + 1e-3 * tables[1]
    model = TableModel({4: tables[0].expand(4, -1), 3: tables[1].expand(3, -1)})
    scores = score_suffixes(model, torch.zeros(1, 5, dtype=torch.long), [4, 3], 3, pairs=[(0, 1), (1, 1)])
    log_p, log_q = tables[:, 0].double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    js = (p * (log_p - log_m) + q * (log_q - log_m)).sum() / 2  # 1.2e-7 nats
    jeffreys = ((p - q) * (log_p - log_q)).sum()
    torch.testing.assert_close(scores.js[0, 0].double(), js.expand(3), rtol=1e-4, atol=0)
    torch.testing.assert_close(scores.jeffreys[0, 0].double(), jeffreys.expand(3), rtol=1e-3, atol=0)
    assert (scores.js[0, 1] == 0).all()
    assert (scores.jeffreys[0, 1] == 0).all()


LARGE_VOCABULARY = 262_144


def large_logits(name: str) -> Tensor:
    """Two contexts' logits over a large vocabulary, float32, [2, V]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, LARGE_VOCABULARY, generator=generator)
    logits = {
        "uniform": torch.zeros(2, LARGE_VOCABULARY),
        "flat": 0.3 * noise[0] + 0.03 * noise[1:],
        "usual": 2 * noise[0] + noise[1:],
        "by frequency": 6 * noise[0].sort(descending=True).values + 0.6 * noise[1:],  # as tokenizers number them
        "far apart": 30 * noise[1:],
        "certain": 0.1 * noise[1:],
    }[name]
    if name == "certain":
        logits[:, 7] = torch.tensor([22.0, 25.0])
    return logits


def expected_values(logits: Tensor) -> dict[str, Tensor]:
    """In float64, each from its definition.  logits: [2, V]."""
    log_p, log_q = logits.double().log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log()
    pairs = [(p, log_p), (p, log_q)], [(q, log_p), (q, log_q)]
    cross_entropy = torch.stack([torch.stack([-(left * right).sum() for left, right in row]) for row in pairs])
    return {
        "nll": -torch.stack([log_p[7], log_q[7]]),
        "entropy": cross_entropy.diagonal(),
        "cross_entropy": cross_entropy,
        "jeffreys": ((p - q) * (log_p - log_q)).sum()[None],
        "js": ((p * (log_p - log_m)).sum() + (q * (log_q - log_m)).sum())[None] / 2,
    }


@pytest.mark.parametrize("name", ["uniform", "flat", "usual", "by frequency", "far apart", "certain"])
@pytest.mark.parametrize("surplus", [0, 77])  # a vocabulary need not be a multiple of any block
def test_a_large_vocabulary_keeps_five_digits(name: str, surplus: int) -> None:
    logits = large_logits(name)[:, : LARGE_VOCABULARY - surplus]
    model = TableModel({3: logits[:1].expand(3, -1), 2: logits[1:].expand(2, -1)})
    scores = score_suffixes(model, torch.full((1, 4), 7), [3, 2], 1, pairs=[(0, 1)])
    for field, expected in expected_values(logits).items():
        torch.testing.assert_close(getattr(scores, field)[0, ..., 0].double(), expected, rtol=1e-5, atol=0)
    nll = score_prefix(model, torch.full((1, 3), 7))[0].double()
    # A logit of 25 in float32 is itself only known to 1e-6.
    torch.testing.assert_close(nll, expected_values(logits)["nll"][:1].expand(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_jensen_shannon_is_never_negative(dtype: torch.dtype) -> None:
    """Not where both distributions are equal up to rounding, nor where rounding keeps them from adding up to 1."""
    generator = torch.Generator().manual_seed(0)
    for distance in (0, 1e-7, 1e-3, 1, 100):
        logits = 5 * torch.randn(64, 300, generator=generator)
        other = logits + distance * torch.randn(64, 300, generator=generator)
        log_p, log_q = (values.log_softmax(-1).to(dtype) for values in (logits, other))
        js = divergences.jensen_shannon(log_p, log_q)
        assert (js >= 0).all()
        assert divergences.jensen_shannon(log_p, log_p).eq(0).all()
        p, q, log_ratio = log_p.float().exp(), log_q.float().exp(), log_p.float() - log_q.float()
        jeffreys, fast = divergences.jeffreys_and_jensen_shannon(p, q, log_ratio, (p.clone(), p.clone()))
        assert (fast >= 0).all()
        assert (jeffreys >= 0).all()
        torch.testing.assert_close(fast, js, rtol=1e-4, atol=1e-12)


def test_jensen_shannon_has_its_gradient_where_probabilities_underflow() -> None:
    logits = torch.tensor([[0.0, -1.0, -300.0, 2.0], [0.5, -1.0, 3.0, -300.0]], dtype=torch.float64)
    logits = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergences.jensen_shannon(*z.log_softmax(-1)), logits)
    single = logits.detach().float().requires_grad_()
    divergences.jensen_shannon(*single.log_softmax(-1)).backward()
    assert single.grad is not None
    assert single.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    log_p, log_q = large_logits("usual").log_softmax(-1).to(torch.bfloat16)
    for function in (divergences.cross_entropy, divergences.kl, divergences.jeffreys, divergences.jensen_shannon):
        expected = function(log_p.double(), log_q.double())
        torch.testing.assert_close(function(log_p, log_q).double(), expected, rtol=1e-5, atol=0)
