"""CLEX: logits, losses and gradients of a tiny Llama."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from longshort.training.extension.clex import clex_positions
from official.clex_layers import LAYER, OFFICIAL_STEP, ORIGINAL, solve_in_float64, tiny_clex
from official.models import random_tokens
from official.source import Checkout
from official.table import Difference, of_tensors

MODEL = "CLEX/llama/modeling_llama_clex.py"


def _official_llama(checkout: Checkout, ours: Any) -> Any:
    """The official Llama with the weights of ours."""
    layer_class = checkout.definitions(LAYER)["CLEXScalingRotaryEmbedding"]

    class AsCalled(layer_class):  # type: ignore[misc, valid-type]  # the class is known at run time
        def forward(self, device: Any, dtype: torch.dtype, length: int, do_train: bool) -> Any:
            return super().forward(torch.empty(0, device=device, dtype=dtype), length, do_train)

    names = checkout.definitions(MODEL, CLEXScalingRotaryEmbedding=AsCalled, PreTrainedModel=_PlainModel)
    rope = ours.config.rope_parameters
    scaling = {"type": "clex", "max_factor": rope["max_t"], "param_factor": 1, "factor": 1}
    config = SimpleNamespace(
        **ours.config.to_dict()
        | {
            "max_position_embeddings": rope["original_max_position_embeddings"],
            "rope_scaling": scaling | {"act": rope["activation"], "time_dt": OFFICIAL_STEP},
            "rope_theta": rope["rope_theta"],
            "pretraining_tp": 1,
            "log_scale": False,
            "use_cache": False,
            "output_attentions": False,
            "output_hidden_states": False,
            "use_return_dict": True,
            "_attn_implementation": "sdpa",
        }
    )
    official = names["LlamaForCausalLM"](config).eval()
    known = {"model.rotary_emb.up": "ode_up_proj", "model.rotary_emb.down": "ode_down_proj"}
    state = {
        f"model.clex_layer.proj_func.{known[name]}" if name in known else name: value
        for name, value in ours.state_dict().items()
    }
    missing, unexpected = official.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if not name.endswith("inv_freq")]:
        raise ValueError(f"the weights do not fit: {missing}, {unexpected}")
    return official


class _PlainModel(nn.Module):
    """Stands in for transformers' PreTrainedModel, of which the official forwards need nothing."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Leave the weights to `load_state_dict`."""


def logits(step: float, float64: bool = False) -> Callable[[Checkout], Difference]:
    """Return what compares logits at several lengths, ours solved with `step`, in evaluation mode."""

    @torch.no_grad()
    def measure(checkout: Checkout) -> Difference:
        ours = tiny_clex(step)
        official = _official_llama(checkout, ours)
        if float64:
            solve_in_float64(official.model.clex_layer)
        tokens = [random_tokens(2, t * ORIGINAL) for t in (1, 2, 3, 5, 16)]
        return of_tensors((official(input_ids=ids).logits, ours(input_ids=ids).logits) for ids in tokens)

    return measure


def training(with_gradients: bool) -> Callable[[Checkout], Difference]:
    """Return what compares the losses, or the gradients of all weights, at several t and the same positions."""

    def pairs(checkout: Checkout) -> Iterator[tuple[Tensor, Tensor]]:
        ours = tiny_clex().train()
        official = _official_llama(checkout, ours).train()
        layer = official.model.clex_layer
        tokens = random_tokens(2, ORIGINAL)
        for t in (1, 2, 3, 5, 16):
            positions = clex_positions(ORIGINAL, t, np.random.default_rng(t))
            layer.sample_random_times = lambda *_, t=t: torch.tensor([t])
            layer.get_random_position_ids = lambda *_, inner=positions[1:-1] - 1, **__: inner
            scales = torch.full((len(tokens),), t)
            chosen = {"clex_t": scales, "clex_positions": positions.expand(len(tokens), -1)}
            losses = (
                official(input_ids=tokens, labels=tokens).loss,
                ours(input_ids=tokens, labels=tokens, **chosen).loss,
            )
            if not with_gradients:
                yield losses
                continue
            for model, loss in zip((official, ours), losses, strict=True):
                model.zero_grad()
                loss.backward()
            named = dict(ours.named_parameters()), dict(official.named_parameters())
            for name, parameter in named[0].items():
                known = name.replace("rotary_emb.", "clex_layer.proj_func.ode_")
                known += "_proj" if known != name else ""
                expected = named[1][known].grad
                yield torch.zeros_like(parameter) if expected is None else expected, parameter.grad

    return lambda checkout: of_tensors(pairs(checkout))
