"""Checks that a model's numbers mean what they are called: it is decoder-only and embeds every token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor

from longshort.errors import UserError
from longshort.lmeval.adapters import adapter_vocabulary, has_trained_in_full, require_no_other_weights
from longshort.lmeval.trained_in_full import load_trained_in_full, read_trained_in_full
from longshort.scoring.causality import require_causal
from longshort.scoring.forward import evaluating, forward, input_device, without_wrappers

PROBE_TOKENS = 8
TOLERANCE = 1e-4  # of the greatest logit

loaded_as_trained: WeakSet[Any] = WeakSet()  # lm-eval's models that are complete, as `load_checkpoint` makes them


def require_decoder_only(model: Any, backend: str | None) -> None:
    """Refuse encoder-decoders and encoders.

    Args:
        model: the model inside lm-eval's ``hf`` backend.
        backend: how lm-eval classifies it, "causal" or "seq2seq".

    Raises:
        UserError: it is an encoder-decoder or an encoder ("unsupported").
    """
    if backend != "causal":
        name = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            f"'{name}' is not a decoder-only model, and perplexity and misalignment by length are defined for those "
            "alone. Use a causal model.",
            "unsupported",
        )
    require_causal(model)


@torch.no_grad()
def require_adapter_in_model(model: Any) -> None:
    """Refuse adapters that act outside the model in a PEFT model, because its forward alone is scored.

    Such are virtual tokens (prompt tuning, prefix tuning, p-tuning) and weights that depend on the whole input
    (X-LoRA). Whatever the type, both forwards must give the same logits.

    Raises:
        UserError: it is one ("unsupported").
    """
    inner: Any = without_wrappers(model)
    if inner is model:
        return
    config = getattr(model, "active_peft_config", None)
    name = getattr(getattr(config, "peft_type", None), "value", type(model).__name__)
    is_outside = getattr(config, "is_prompt_learning", False) or getattr(config, "alora_invocation_tokens", None)
    if is_outside or not _same_logits(model, inner):
        raise UserError(
            f"adapter of type {name}: it acts on the input of the model (as virtual tokens do), not on its weights "
            "alone, and perplexity and misalignment by length are not defined for such. Use an adapter that can be "
            "merged into the weights, such as LoRA.",
            "unsupported",
            "peft",
        )


def _same_logits(model: Any, inner: Any) -> bool:
    rows = _num_embeddings(inner) or PROBE_TOKENS
    tokens = torch.arange(1, PROBE_TOKENS + 1, device=input_device(inner))[None] % rows  # [1, T]
    with evaluating(model):
        try:
            outer, own = (forward(each, tokens).logits for each in (model, inner))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # PEFT's forward may need inputs of its own, as the task of a multi-task adapter
            return False
    scale = own.abs().max().clamp_min(1e-30)
    return outer.shape == own.shape and torch.allclose(outer / scale, own / scale, atol=TOLERANCE, equal_nan=True)


def require_weights_as_trained(lm: Any) -> None:
    """Refuse an adapter or differences that lm-eval has put on a checkpoint in another way than `load_checkpoint`.

    What LongLoRA has trained in full next to an adapter, and lm-eval does not load, is loaded.

    Args:
        lm: lm-eval's ``hf`` model, loaded by it or by `load_checkpoint`.

    Raises:
        UserError: the adapter's vocabulary is not the one it was trained with ("unsupported"), or see
            `adapters.adapter_vocabulary`, `adapters.require_no_other_weights` and
            `trained_in_full.load_trained_in_full`; differences were added twice to a shared embedding ("unsupported").
    """
    if lm in loaded_as_trained:
        return
    model, advice = lm.model, "Use 'longshort eval', which loads it correctly, or the merged model."
    if source := getattr(lm, "peft", None):
        require_no_other_weights(source, lm.revision)
        rows, own = _num_embeddings(model), lm.config.get_text_config().vocab_size
        has_more = has_trained_in_full(source, lm.revision)
        if (rows != own or has_more) and rows != adapter_vocabulary(model, own, source, lm.revision):
            raise UserError(
                f"adapter '{source}': lm-eval resized the vocabulary of {own} to the tokenizer's {rows} tokens, which "
                f"changes every probability. {advice}",
                "unsupported",
                "peft",
            )
        if has_more:
            load_trained_in_full(model, read_trained_in_full(source, lm.revision), own, source)
    if getattr(lm, "delta", None):
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if embedding.weight is getattr(head, "weight", None):
            raise UserError(
                f"delta '{lm.delta}': lm-eval added it twice to the embedding, which is also the LM head. {advice}",
                "unsupported",
                "delta",
            )
    loaded_as_trained.add(lm)


class Tokenized(Protocol):
    """What has tokens: a document, a prompt."""

    @property
    def tokens(self) -> Tensor:
        """Token ids, [N]."""


def require_embeddings(model: Any, documents: Iterable[Tokenized]) -> None:
    """Refuse documents with tokens for which the model has no embedding.

    Raises:
        UserError: a token id is beyond the embedding's rows ("setting").
    """
    rows = _num_embeddings(model)
    largest = max((int(document.tokens.max()) for document in documents if len(document.tokens)), default=-1)
    if rows is not None and largest >= rows:
        raise UserError(
            f"the tokenizer produces token {largest}, but the model has a vocabulary of {rows}: they do not belong "
            "together. Set the model argument tokenizer=… to the model's own tokenizer.",
            "setting",
        )


def _num_embeddings(model: Any) -> int | None:
    """Rows of the input embedding, also where an adapter's layer is around it."""
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    return getattr(embedding, "num_embeddings", None) or (None if weight is None else int(weight.shape[0]))
