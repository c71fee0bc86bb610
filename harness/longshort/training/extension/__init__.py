"""Context extension: a model's config becomes that of a model for longer texts.

Needs torch only where it is used: the command line reads the settings without it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from longshort.errors import UserError
from longshort.training.extension.options import OPTIONS
from longshort.training.extension.rope import rescale_rope

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from longshort.training.config import TrainConfig

logger = logging.getLogger(__name__)


def extend_context(config: PretrainedConfig, settings: TrainConfig) -> tuple[PretrainedConfig, Any]:
    """Return the config of the extended model, and the class that builds it from weights or at random.

    What transformers has (`rescale_rope`) changes `config` itself, and the class is AutoModelForCausalLM. CLEX and
    EABF return a config and a class of their own (`modeling_clex`, `modeling_eabf`), whose code a checkpoint
    carries. The base's own length L0 is its `max_position_embeddings`. The factor is by default 16 for CLEX (its
    max_t, Chen et al. 2024), else the train length over L0, rounded up, for EABF at least 2.

    Raises:
        UserError: the model has no RoPE, more than one, or one that is extended already; the method is not made
            for this architecture; factor, lengths and options contradict each other.
    """
    from transformers import AutoModelForCausalLM

    extension = settings.extension
    if extension == "none":
        return config, AutoModelForCausalLM
    _check_rope(config, extension)
    factor = _factor(config, settings)
    options = OPTIONS[extension] | {k: v for k, v in (settings.extension_options or {}).items() if v is not None}
    if extension in ("clex", "eabf"):
        return _with_own_code(config, settings, factor, options)
    if extension in ("dynamic", "longrope") and settings.train_length <= config.max_position_embeddings:
        _frequencies_unscaled(config, settings)
    rescale_rope(config, extension, factor, options)
    return config, AutoModelForCausalLM


def _check_rope(config: PretrainedConfig, extension: str) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in rope:
        raise UserError(
            f"extension '{extension}' rescales RoPE, and a '{config.model_type}' model has none, or several. "
            "Train it with --extension none."
        )
    kind = rope.get("rope_type", "default")
    if kind != "default" or config.model_type.startswith("longshort_eabf_"):
        kind = "eabf" if kind == "default" else kind
        raise UserError(
            f"The base '{config.model_type}' already rescales its RoPE ({kind}). Start from the base "
            "it was made of, or use --extension none."
        )


def _factor(config: PretrainedConfig, settings: TrainConfig) -> float:
    """The factor given or its default, checked against the lengths."""
    own, length = config.max_position_embeddings, settings.train_length
    if settings.factor is not None:
        factor = float(settings.factor)
    elif settings.extension == "clex":
        factor = 16.0
    else:
        factor = float(max(math.ceil(length / own), 2 if settings.extension == "eabf" else 1))
    if factor == 1:
        raise UserError(
            f"train_length {length} is within the {own} positions of the '{config.model_type}' base, so it does not "
            f"say how far extension '{settings.extension}' shall reach: give --factor."
        )
    if length > factor * own:
        raise UserError(
            f"train_length {length} is beyond factor {factor:g} times the {own} positions of the "
            f"'{config.model_type}' base: raise --factor to {math.ceil(length / own)}, or shorten --train-length."
        )
    return factor


def _frequencies_unscaled(config: PretrainedConfig, settings: TrainConfig) -> None:
    """Dynamic NTK and LongRoPE leave RoPE as it is within the original length."""
    where = f"train_length {settings.train_length} is within the {config.max_position_embeddings} positions of the"
    if settings.extension == "dynamic":
        logger.warning(
            "%s '%s' base, where extension 'dynamic' changes nothing: training sees unscaled RoPE.",
            where,
            config.model_type,
        )
    elif "short_factor" not in (settings.extension_options or {}):
        raise UserError(
            f"{where} '{config.model_type}' base, where extension 'longrope' uses its short_factor, 1 by default: "
            "training would never see the long one. Raise --train-length, or give short_factor."
        )


def _with_own_code(
    config: PretrainedConfig, settings: TrainConfig, factor: float, options: dict[str, Any]
) -> tuple[PretrainedConfig, Any]:
    from longshort.training.extension import modeling_clex, modeling_eabf

    classes = (modeling_clex if settings.extension == "clex" else modeling_eabf).CAUSAL_LMS
    if config.model_type not in classes:
        raise UserError(
            f"extension '{settings.extension}' is made for {', '.join(classes)}, and the base is a "
            f"'{config.model_type}' model. Use linear, dynamic, yarn, longrope or llama3."
        )
    original = config.max_position_embeddings
    rope = dict(config.rope_parameters)
    changes: dict[str, Any] = {"max_position_embeddings": int(original * factor), "rope_parameters": rope}
    if settings.extension == "clex":
        kept = {name: options[name] for name in ("hidden_multiplier", "activation", "step")}
        rope |= {"rope_type": "clex", "original_max_position_embeddings": original, "max_t": int(factor), **kept}
    else:
        rope["rope_theta"] = float(options["theta"])
        changes |= {"eabf_original_length": original, "eabf_unscaled_layers": options["unscaled_layers"]}
    model_class = classes[config.model_type]
    # The type is the class's own; left in the dict it would name the base's.
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return model_class.config_class.from_dict(fields | changes), model_class
