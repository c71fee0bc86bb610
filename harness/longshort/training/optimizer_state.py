"""Bytes of an optimizer's state."""

from __future__ import annotations

from typing import Any

from longshort.training.config import TrainConfig
from longshort.training.weights import Weights

# Bytes per trained weight of an optimizer's state, by transformers' name: one, two or three averages in 4 bytes, 1 or
# half a byte. Of others as much as AdamW's is assumed. Adafactor's is in `optimizer_state`.
STATE_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"), 8.0),
    **dict.fromkeys(("adamw_anyprecision", "paged_adamw_32bit"), 8.0),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"), 2.0),
    "adamw_torch_4bit": 1.0,
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), 12.0),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3.0),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), 4.0),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), 1.0),
    **dict.fromkeys(("adagrad", "rmsprop"), 4.0),
    "sgd": 0.0,
}


def optimizer_state(config: TrainConfig, weights: Weights) -> float:
    """Bytes of an optimizer's state of all trained weights.

    Source: Shazeer & Stern (2018) for Adafactor, which keeps no moment of the gradient here; Dettmers et al. (2022)
    for 8 bits, with embeddings in 32.
    """
    name = config.optim
    if name == "adafactor":
        return 4.0 * weights.factored
    per_weight = STATE_BYTES.get(name, 8.0)
    if name in ("sgd", "rmsprop"):
        per_weight += 4 * _more_averages((config.trainer_arguments or {}).get("optim_args"))
    if name in STATE_BYTES and "8bit" in name and name != "adamw_torch_8bit":  # bitsandbytes'
        return per_weight * (weights.trained - weights.embedded) + 4 * per_weight * weights.embedded
    return per_weight * weights.trained


def _more_averages(arguments: Any) -> int:
    """How many averages per weight PyTorch's SGD or RMSprop has besides its own, by transformers' `optim_args`."""
    given = dict(pair.partition("=")[::2] for pair in str(arguments or "").replace(" ", "").split(","))
    return (given.get("momentum", "0").strip("0.") != "") + (given.get("centered", "").lower() in ("true", "1", "yes"))
