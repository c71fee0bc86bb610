"""Key tokens against a dense loop over every window and every token, in float64."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from longshort.scoring import key_tokens
from longshort.scoring.key_tokens import Criterion, find_key_tokens, nll_at
from longshort.scoring.lm_head import lm_head_of
from tests.errors import user_error
from tests.models import CONFIGS, LLAMA_LIKE, dense_log_probabilities, random_tokens, tiny_model

SHORT, STRIDE = 8, 5


def dense_losses(model: nn.Module, tokens: torch.Tensor, short: int, stride: int) -> list[tuple[float, float]]:
    """The NLL of each token from K on with the long and with the short context."""
    found, count = [], tokens.shape[1]
    whole = dense_log_probabilities(model, tokens)[0]
    for target in range(short, count):
        window = (target - short) // stride * stride
        part = dense_log_probabilities(model, tokens[:, window : min(window + short + stride, count)])[0]
        token = tokens[0, target]
        found.append((-float(whole[target - 1, token]), -float(part[target - 1 - window, token])))
    return found


def dense_key_tokens(model: nn.Module, tokens: torch.Tensor, criterion: Criterion) -> list[int]:
    losses = dense_losses(model, tokens, criterion.short, criterion.stride)
    return [
        criterion.short + index
        for index, (long, short) in enumerate(losses)
        if short - long > criterion.min_gain and long < criterion.max_loss
    ]


def between_tokens(model: nn.Module, tokens: torch.Tensor) -> Criterion:
    """Thresholds that about half of the tokens exceed, and none is so close to that rounding decides."""
    losses = dense_losses(model, tokens, SHORT, STRIDE)
    gains, longs = sorted(short - long for long, short in losses), sorted(long for long, _ in losses)
    middle = []
    for values in (gains, longs):
        distance, index = max((values[i + 1] - values[i], i) for i in range(len(values) // 3, 2 * len(values) // 3))
        assert distance > 1e-3
        middle.append(values[index] + distance / 2)
    return Criterion(SHORT, STRIDE, *middle)


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_a_dense_loop(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(1, 60)
    criterion = between_tokens(model, tokens)
    expected = dense_key_tokens(model, tokens, criterion)
    assert 3 <= len(expected) < 30, "the thresholds should tell tokens apart"
    assert find_key_tokens(model, tokens, criterion) == expected


# K tokens, one more, the last window of one token, whole windows, and a short last window.
@pytest.mark.parametrize("count", [5, SHORT, SHORT + 1, SHORT + STRIDE, SHORT + STRIDE + 1, SHORT + 2 * STRIDE, 29])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_ends_of_a_document(count: int, batch_size: int) -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, count, seed=1)
    every = Criterion(SHORT, STRIDE, min_gain=-100.0, max_loss=100.0)
    assert find_key_tokens(model, tokens, every, batch_size=batch_size) == list(range(SHORT, count))
    some = Criterion(SHORT, STRIDE, min_gain=0.3, max_loss=6.0)
    expected = dense_key_tokens(model, tokens, some)
    assert find_key_tokens(model, tokens, some, batch_size=batch_size) == expected


def test_windows_are_read_in_batches_and_only_where_a_token_can_be_a_key_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model("llama"), random_tokens(1, SHORT + 4 * STRIDE + 2)
    read: list[tuple[int, ...]] = []
    original = type(lm_head_of(model)).hidden_states
    monkeypatch.setattr(
        type(lm_head_of(model)),
        "hidden_states",
        lambda self, batch, keep: read.append(tuple(batch.shape)) or original(self, batch, keep),
    )
    sizes: list[int] = []
    find_key_tokens(model, tokens, Criterion(SHORT, STRIDE, 0.3, 100.0), batch_size=3, report=sizes.append)
    size = SHORT + STRIDE
    assert read == [(1, SHORT + 4 * STRIDE + 2), (3, size), (1, size), (1, SHORT + 2)]
    assert sizes == [rows * columns for rows, columns in read]
    read.clear()
    assert find_key_tokens(model, tokens, Criterion(SHORT, STRIDE, 0.3, 0.0)) == []
    assert len(read) == 1


def test_only_the_positions_asked_for_go_through_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = tiny_model("gemma2"), random_tokens(2, 20)
    head = lm_head_of(model)
    states = head.hidden_states(tokens, keep=20)[:, :-1]
    scored: list[int] = []
    original = key_tokens.nll_of_states
    monkeypatch.setattr(
        key_tokens, "nll_of_states", lambda *parts: scored.append(parts[1].shape[1]) or original(*parts)
    )
    positions = [torch.tensor([3, 17]), torch.tensor([], dtype=torch.long)]
    some, none = nll_at(head, states, tokens[:, 1:], positions)
    log_p = dense_log_probabilities(model, tokens)
    expected = torch.stack([-log_p[0, place, tokens[0, place + 1]] for place in (3, 17)])
    torch.testing.assert_close(some.double(), expected, rtol=1e-4, atol=1e-5)
    assert (len(none), scored) == (0, [2])
    assert [len(of_row) for of_row in nll_at(head, states, tokens[:, 1:], [positions[1]] * 2)] == [0, 0]


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[:] = torch.nan
    with user_error("non_finite"):
        find_key_tokens(model, random_tokens(1, SHORT + 3), Criterion(SHORT, STRIDE))


def test_logits_of_a_window_are_never_held() -> None:
    """The largest tensor that is made has far fewer elements than the logits of the tokens scored."""
    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest[0] = max(largest[0], result.numel())
            return result

    config = transformers.LlamaConfig(**LLAMA_LIKE | {"vocab_size": 20_000})
    model, tokens = transformers.AutoModelForCausalLM.from_config(config).eval(), random_tokens(1, 250)
    lm_head_of(model)  # its probe reads the logits of a few tokens
    with Watch():
        find_key_tokens(model, tokens, Criterion(100, 150, min_gain=-100.0, max_loss=100.0))
    assert 0 < largest[0] <= 20_000 * 32  # the LM head's matrix
    assert 4 * largest[0] < 150 * 20_000
