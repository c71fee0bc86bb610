import math

import numpy as np
import pytest
import torch

from longshort.synthetic.model import ENCODINGS, Size, Transformers, rotate, score_bias, sinusoids
from longshort.synthetic.tasks import TASKS, draw_bits

SIZE = Size(width=16, layers=2, heads=2)


def bits_of(*shape, seed=0):
    return draw_bits(torch.Generator().manual_seed(seed), *shape)


def solve_mean(models):
    """Set the weights by hand: attention is uniform over the bits and ignores the BOS; a bit is its own value.

    Tokens are a direction each, of mean 0 and variance 1, so that LayerNorm changes nothing but by its epsilon.
    """
    with torch.no_grad():
        for parameter in models.parameters():
            parameter.zero_()
        zero, one, bos = torch.eye(3).double()
        directions = torch.cat([torch.stack([zero, one, bos]), -torch.stack([zero, one, bos])], 1)
        directions = directions * math.sqrt(3)  # six features, two of them not zero
        models.tokens[:] = directions
        values = torch.stack([zero, one, bos]) * (math.sqrt(3 + 1e-5 * 3) / 6)  # undoes the length 6 of a direction
        read = torch.cat([values, -values], 1)  # [3, D]: scalar product with the normed token is 0 or 1
        block, width = models.blocks[0], models.size.width
        block["qkv_bias"][:, 0, 0] = 1  # every query is the first unit vector
        block["qkv"][:, :, width] = -1e4 * read[2]  # a BOS's key is far off it, a bit's is 0
        block["qkv"][:, :, 2 * width] = read[1]  # a bit's value is itself
        block["out"][:, 0] = torch.tensor([1.0, 1, 1, 1, 1, 1]).double()  # along the ones, where no token lies
        models.head[:, :, 0] = torch.ones(6).double() / 6


def test_hand_set_model_solves_the_mean_exactly():
    models = Transformers("none", [0, 1], 50, Size(width=6, layers=1, heads=1)).double()
    solve_mean(models)
    bits = bits_of(2, 32, 50).double()
    torch.testing.assert_close(models(bits), TASKS["mean"].truth(bits), rtol=0, atol=1e-10)


def by_hand(models, bits, encoding):
    """The outputs of one model on one sequence in float64, position by position and head by head, [T-1]."""
    get = {name: value[0].detach().double().numpy() for name, value in models.named_parameters()}
    width, heads = models.size.width, models.size.heads
    size, length = width // heads, len(bits) + 1

    def normed(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    def angle(position, pair, dimensions):
        return position / 10_000 ** (2 * pair / dimensions)

    def rotated(x, position):
        half, turned = len(x) // 2, x.copy()
        for i in range(half):
            z = complex(x[i], x[half + i]) * np.exp(1j * angle(position, i, len(x)))
            turned[i], turned[half + i] = z.real, z.imag
        return turned

    x = [get["tokens"][token] for token in (2, *bits)]
    if encoding == "learned":
        x = [value + get["positions"][t] for t, value in enumerate(x)]
    if encoding == "sinusoidal":
        angles = [[angle(t, i, width) for i in range(width // 2)] for t in range(length)]
        x = [value + np.concatenate([np.sin(a), np.cos(a)]) for value, a in zip(x, angles, strict=True)]
    for layer in range(models.size.layers):
        block = {name: get[f"blocks.{layer}.{name}"] for name in models.blocks[layer]}
        qkv = [(normed(value) @ block["qkv"] + block["qkv_bias"][0]).reshape(3, heads, size) for value in x]
        mixed = np.zeros((length, heads, size))
        for t in range(length):
            for h in range(heads):
                query, scores = qkv[t][0, h], []
                for s in range(t + 1):
                    key = qkv[s][1, h]
                    pair = (rotated(query, t), rotated(key, s)) if encoding == "rope" else (query, key)
                    slope = 2 ** (-8 * (h + 1) / heads) if encoding == "alibi" else 0
                    scores.append(pair[0] @ pair[1] / size**0.5 - slope * (t - s))
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed[t, h] = sum(w * qkv[s][2, h] for s, w in enumerate(weights))
        x = [value + mixed[t].ravel() @ block["out"] + block["out_bias"][0] for t, value in enumerate(x)]
        for t, value in enumerate(x):
            hidden = normed(value) @ block["up"] + block["up_bias"][0]
            hidden = np.array([h * (1 + math.erf(h / 2**0.5)) / 2 for h in hidden])  # GELU
            x[t] = value + hidden @ block["down"] + block["down_bias"][0]
    return [(value @ get["head"] + get["head_bias"][0]).item() for value in x[1:]]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_outputs_are_those_of_a_loop_over_positions_and_heads(encoding):
    models = Transformers(encoding, [5], 12, SIZE).double()
    with torch.no_grad():
        for parameter in models.parameters():  # biases, too, and scores that differ
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    bits = bits_of(1, 1, 9)
    expected = by_hand(models, bits[0, 0].int().tolist(), encoding)
    assert models(bits.double())[0, 0].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_batched_equals_separate_models(encoding):
    seeds, bits = [3, 1, 4], bits_of(3, 8, 12)
    together = Transformers(encoding, seeds, 12, SIZE)
    loss = (together(bits) - TASKS["mean"].targets(bits)).square().mean((1, 2)).sum()
    loss.backward()
    for index, seed in enumerate(seeds):
        alone = Transformers(encoding, [seed], 12, SIZE)
        own = bits[index : index + 1]
        torch.testing.assert_close(together(bits)[index], alone(own)[0], rtol=1e-6, atol=1e-6)
        (alone(own) - TASKS["mean"].targets(own)).square().mean().backward()
        for ours, theirs in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad[index], theirs.grad[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_padding_does_not_leak(encoding):
    """Sequences of different lengths in one batch: what stands after their ends changes no output and no gradient."""
    lengths = torch.tensor([3, 12, 7, 1])
    inside = torch.arange(12) < lengths[:, None]
    results = []
    for filler in (0.0, 1.0):
        models = Transformers(encoding, [0, 1], 12, SIZE)
        bits = torch.where(inside, bits_of(2, 4, 12), filler)
        last = models(bits).gather(-1, (lengths - 1).expand(2, 4)[..., None])
        last.square().sum().backward()
        results.append((last, [parameter.grad for parameter in models.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    models = Transformers(encoding, [0, 1], 12, SIZE)
    for row, length in enumerate(lengths.tolist()):
        alone = models(bits_of(2, 4, 12)[:, row : row + 1, :length])[:, 0, -1]
        torch.testing.assert_close(alone, results[0][0][:, row, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_runs_on_the_device_of_its_parameters(encoding):
    """The meta device refuses tensors of the CPU as a GPU does."""
    models = Transformers(encoding, [0, 1], 12, SIZE).to("meta")
    outputs = models(bits_of(2, 4, 12).to("meta"))
    outputs.sum().backward()
    assert outputs.shape == (2, 4, 12)
    assert outputs.device.type == "meta"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_causal(encoding):
    models, bits = Transformers(encoding, [0], 12, SIZE), bits_of(1, 4, 12)
    changed = bits.clone()
    changed[..., 6:] = 1 - changed[..., 6:]
    before, after = models(bits), models(changed)
    torch.testing.assert_close(before[..., :6], after[..., :6], rtol=0, atol=1e-6)
    assert (before[..., 6] != after[..., 6]).all()


def test_without_positions_the_order_does_not_matter_at_one_layer():
    models, bits = Transformers("none", [0], 12, Size(16, 1, 2)), bits_of(1, 1, 12)
    turned = torch.cat([bits[..., :-1].flip(-1), bits[..., -1:]], -1)
    torch.testing.assert_close(models(bits)[..., -1], models(turned)[..., -1], rtol=0, atol=1e-6)
    learned = Transformers("learned", [0], 12, Size(16, 1, 2))
    assert not torch.allclose(learned(bits)[..., -1], learned(turned)[..., -1], atol=1e-4)


def test_rope_scores_depend_on_relative_position_only():
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = rotate(q.expand(20, 8)) @ rotate(k.expand(20, 8)).T  # [T, T]
    for offset in range(-19, 20):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert scores[0, 0].isclose(q @ k)
    assert not scores[5, 0].isclose(q @ k)


def test_alibi_bias_is_linear_and_causal():
    bias = score_bias("alibi", 4, 6)
    assert bias[:, 5].tolist() == [
        [-slope * (5 - key) for key in range(6)] for slope in (1 / 4, 1 / 16, 1 / 64, 1 / 256)
    ]
    later = torch.ones(6, 6).triu(1).bool()
    assert (bias[:, later] == -math.inf).all()
    assert (score_bias("none", 4, 6)[:, ~later] == 0).all()


def test_sinusoids():
    table = sinusoids(20, 8)
    assert table[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert table[3, 0].item() == pytest.approx(math.sin(3))
    assert table[3, 5].item() == pytest.approx(math.cos(3 / 10))


def test_parameter_count_and_untrained_rows():
    models = Transformers("none", [0], 12, SIZE)
    assert sum(parameter.numel() for parameter in models.parameters()) == SIZE.parameters
    learned = Transformers("learned", [0], 12, SIZE)
    learned(bits_of(1, 4, 5)).sum().backward()
    assert learned.positions is not None
    assert (learned.positions.grad[0, 6:] == 0).all()
    assert (learned.positions.grad[0, :6] != 0).any(-1).all()
