"""Oracles for retrieval: models that continue a text as it went on where it was most like this before."""

from __future__ import annotations

from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

LAST = 12  # positions that are predicted, more than a value has tokens; the others get equal logits


class LookupLM(LlamaForCausalLM):
    """Predicts the token that followed the longest earlier match of the last tokens, of at most `memory` tokens."""

    memory = 1000
    sharpness = 4.0  # logit of the prediction; the others have 0

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutputWithPast:
        logits = torch.zeros(*input_ids.shape, self.config.vocab_size)
        for row, tokens in zip(logits, input_ids.tolist(), strict=True):
            for i in range(max(1, len(tokens) - LAST), len(tokens)):
                row[i, tokens[self._best(tokens, i) + 1]] = self.sharpness
        return CausalLMOutputWithPast(logits=logits)

    def _best(self, tokens: list[int], i: int) -> int:
        """The latest place before i of those whose tokens match most of the last ones at i."""
        best, length = i - 1, 0
        for j in range(i - 1, -1, -1):
            matching = 0
            while matching < min(j + 1, self.memory) and tokens[i - matching] == tokens[j - matching]:
                matching += 1
            if matching > length:
                best, length = j, matching
        return best


def lookup_model(vocab_size: int, memory: int) -> LookupLM:
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    model = LookupLM(config).eval()
    model.memory = memory
    return model


class PlainLM(LM):
    """A backend that has nothing but token ids and log-likelihoods, as an API has them."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.asked: list[tuple[str, str]] = []

    def tok_encode(self, string: str, **_: Any) -> list[int]:
        return list(self.inner.tok_encode(string))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return list(self.inner.loglikelihood(requests, disable_tqdm=True))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError
