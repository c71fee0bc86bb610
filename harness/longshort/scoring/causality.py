"""Whether a model is causal: the predictions of an encoder are not next-token distributions."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from longshort.errors import UserError

PROBE_TOKENS = 8
TOLERANCE = 1e-4  # of the greatest logit; a causal model gives the same ones

_causal: WeakSet[nn.Module] = WeakSet()


@torch.no_grad()
def require_causal(model: Any) -> None:
    """Refuse an encoder, whose predictions depend on the tokens that they predict.

    transformers also loads BERT and similar models as causal ones, at most with a warning. Their configs have
    ``is_decoder: false``, but so have those of a few decoders. Such models are therefore probed: does another last
    token change the logits before it?

    Raises:
        UserError: it does (kind "unsupported").
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "is_decoder", None) is not False or model in _causal:
        return
    embeddings: Any = model.get_input_embeddings()
    tokens = torch.arange(PROBE_TOKENS, device=embeddings.weight.device)[None] % embeddings.num_embeddings  # [1, T]
    other = tokens.clone()
    other[0, -1] = tokens[0, 0]
    training = model.training
    model.eval()  # dropout would change them too
    try:
        logits, changed = (model(ids).logits[0, :-1].float() for ids in (tokens, other))  # [T-1, V]
    finally:
        model.train(training)
    if (logits - changed).abs().max() > TOLERANCE * logits.abs().max():
        raise UserError(
            f"Cannot use '{config.model_type}', which is an encoder here: its predictions depend on the tokens that "
            "they predict. Give a causal model, or set is_decoder in its config.json if it is one.",
            "unsupported",
        )
    _causal.add(model)
