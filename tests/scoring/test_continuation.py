"""Likelihoods of a continuation against dense logits and against decoding token by token."""

from __future__ import annotations

import pytest
import torch

from longshort.scoring.continuation import score_continuation
from longshort.scoring.lm_head import LMHead
from tests.models import CONFIGS, VOCAB, dense_log_probabilities, random_tokens, tiny_model


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_dense_log_probabilities(name: str) -> None:
    model, tokens = tiny_model(name), random_tokens(3, 20)
    dense = dense_log_probabilities(model, tokens[:, :-1])[:, -5:]  # [B, K, V]
    targets = tokens[:, -5:]
    scores = score_continuation(model, tokens, 5)
    expected = -dense.gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(scores.nll.double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores.is_top == 1, dense.argmax(-1) == targets)


def test_all_top_is_what_greedy_decoding_gives() -> None:
    model, prompts = tiny_model("llama"), random_tokens(4, 12)
    decoded = prompts
    for _ in range(6):  # one token at a time
        decoded = torch.cat([decoded, model(decoded).logits[:, -1:].argmax(-1)], dim=1)
    assert bool((score_continuation(model, decoded, 6).is_top == 1).all())
    changed = decoded.clone()
    changed[:, -3] = (changed[:, -3] + 1) % VOCAB
    assert (score_continuation(model, changed, 6).is_top[:, -3] == 0).all()


def test_only_the_targets_go_through_the_lm_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, rows = tiny_model("llama"), random_tokens(3, 50), []
    score_continuation(model, tokens, 4)  # the LM head is probed
    original = LMHead.logits

    def logits(self, hidden_states, buffer=None):
        rows.append(hidden_states.shape[0] * hidden_states.shape[1])
        return original(self, hidden_states, buffer)

    monkeypatch.setattr(LMHead, "logits", logits)
    score_continuation(model, tokens, 4)
    assert sum(rows) == 3 * 4


@pytest.mark.parametrize("num_targets", [0, -1, 8])
def test_out_of_range(num_targets: int) -> None:
    with pytest.raises(ValueError, match=str(num_targets)):
        score_continuation(tiny_model("llama"), random_tokens(1, 8), num_targets)
