"""The misalignment loss against a loop over positions, and its gradients."""

import itertools
import math

import pytest
import torch

from longshort.training import misalignment_loss, regularizer
from longshort.training.regularizer import measure_misalignment, shared_positions

POSITIONS = ("overlap", "in_range", "last")
DIVERGENCES = ("sce", "jeffreys", "js", "kl")
B, T, V, E = 2, 9, 5, 3


def logits(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(B, T, V, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


def slow(logits_long, logits_short, extra, positions, divergence):
    """Every pair of positions in plain Python, straight from the definitions."""

    def h(p, q):
        return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))

    values = []
    for b, i, j in itertools.product(range(B), range(T), range(T)):
        same_token = i == j + extra
        contexts = (i + 1, j + 1)
        counts = {
            "overlap": True,
            "in_range": all(T / 2 <= context <= T for context in contexts),
            "last": i == T - 1,
        }[positions]
        if not (same_token and counts):
            continue
        p, q = logits_long[b, i].softmax(0).tolist(), logits_short[b, j].softmax(0).tolist()
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        values.append(
            {
                "sce": h(p, q) + h(q, p),
                "jeffreys": h(p, q) - h(p, p) + h(q, p) - h(q, q),
                "js": h(m, m) - (h(p, p) + h(q, q)) / 2,
                "kl": h(p, q) - h(p, p),
            }[divergence]
        )
    return sum(values) / len(values)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("extra", [1, 3, 4])
def test_agrees_with_a_loop_over_positions(positions, divergence, extra):
    long, short = logits()
    result = misalignment_loss(long, short, extra, positions=positions, divergence=divergence)
    assert result.loss.item() == pytest.approx(slow(long, short, extra, positions, divergence), rel=1e-10)


@pytest.mark.parametrize("positions", POSITIONS)
def test_sce_is_entropy_plus_jeffreys(positions):
    result = misalignment_loss(*logits(), E, positions=positions)
    assert result.loss.item() == pytest.approx((result.entropy + result.jeffreys).item(), rel=1e-12)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("detach", ["none", "long", "short"])
def test_gradients_against_finite_differences(positions, divergence, detach):
    inputs = [x.requires_grad_() for x in logits()]
    result = misalignment_loss(*inputs, E, positions=positions, divergence=divergence, detach=detach)
    gradients = torch.autograd.grad(result.loss, inputs, allow_unused=True)
    for side, gradient in zip(("long", "short"), gradients, strict=True):
        if detach == side:
            assert gradient is None
            continue
        index, step = inputs[side == "short"].detach(), 1e-6
        for place in [(0, T - 1, 2), (1, 5, 0), (1, T - 1 - E, 1)]:
            moved = []
            for sign in (1, -1):
                shifted = index.clone()
                shifted[place] += sign * step
                pair = [x.detach() for x in inputs]
                pair[side == "short"] = shifted
                moved.append(slow(*pair, E, positions, divergence))
            assert gradient[place].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("special", "chunk"), [(0, 100), (1, 2), (1, 1)])
def test_measured_a_chunk_at_a_time_it_is_the_same(positions, divergence, special, chunk, monkeypatch):
    monkeypatch.setattr(regularizer, "chunk_positions", lambda *_: chunk)
    settings = {"positions": positions, "divergence": divergence, "special": special}
    inputs = [x.requires_grad_() for x in logits(torch.float32)]
    measured = measure_misalignment(*inputs, E, **settings, detach="long")
    assert not measured.loss.requires_grad
    for value, expected in zip(measured, misalignment_loss(*inputs, E, **settings), strict=True):
        torch.testing.assert_close(value, expected.detach())


def test_equal_sides_leave_only_entropy():
    long, short = logits()
    short[:, : T - E] = long[:, E:]
    result = misalignment_loss(long, short, E)
    assert result.jeffreys.item() == pytest.approx(0, abs=1e-12)
    assert result.loss.item() == pytest.approx(result.entropy.item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_logits_are_read_in_float32(dtype):
    pair = logits(dtype)
    result = misalignment_loss(*pair, E)
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == pytest.approx(slow(*(x.double() for x in pair), E, "overlap", "sce"), rel=1e-5)


def test_float64_stays_float64():
    assert misalignment_loss(*logits(), E).loss.dtype == torch.float64


@pytest.mark.parametrize("length", [4, 5, 8, 9])
def test_in_range_is_never_empty_for_shifts_up_to_half(length):
    for extra in range(1, length // 2 + 1):
        pairs = shared_positions(length, extra, "in_range")
        assert len(pairs) >= 1
        assert all(length / 2 <= j + 1 and extra + j + 1 <= length for j in pairs)


@pytest.mark.parametrize("special", [0, 1, 2])
def test_a_bos_of_the_short_window_is_not_compared(special: int) -> None:
    generator = torch.Generator().manual_seed(0)
    long, short = torch.randn(2, 2, 6, 5, generator=generator, dtype=torch.float64)  # [B, T, V] each
    extra = 2
    p, q = long.log_softmax(-1), short.log_softmax(-1)
    terms = [
        -(p[b, extra + j].exp() @ q[b, j]) - (q[b, j].exp() @ p[b, extra + j])
        for b in range(2)
        for j in range(special, 6 - extra)
    ]
    actual = misalignment_loss(long, short, extra, special=special).loss
    torch.testing.assert_close(actual, torch.stack(terms).mean())
