"""Context extension: a model's config becomes that of a model for longer texts.

Needs torch only where it is used: the command line reads the settings without it.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from longshort.errors import UserError
from longshort.training.extension.options import OPTIONS, Extension
from longshort.training.extension.rope import rescale_rope

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


def extend_context(
    config: PretrainedConfig,
    extension: Extension,
    *,
    train_length: int,
    factor: float | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[PretrainedConfig, Any]:
    """Return the config of the extended model, and the class that builds it from weights or at random.

    The methods of transformers (`rescale_rope`) change `config` itself, and the class is AutoModelForCausalLM. CLEX
    and EABF return a config and a class of their own (`modeling_clex`, `modeling_eabf`), whose code is saved with a
    checkpoint. The base's own length L0 is its `max_position_embeddings`.

    Args:
        config: of the base.
        extension: the method.
        train_length: training context length, in tokens.
        factor: extended length divided by L0; by default 16 for CLEX (its max_t, Chen et al. 2024), else
            `train_length` divided by L0, rounded up, and for EABF at least 2.
        options: of the method, in place of the defaults in `OPTIONS`.

    Raises:
        UserError: the model has no RoPE, more than one, or one that is extended already; the method does not
            support this architecture; factor, lengths and options contradict each other.
    """
    from transformers import AutoModelForCausalLM

    if extension == "none":
        return config, AutoModelForCausalLM
    _check_rope(config, extension)
    factor = _checked_factor(config, extension, train_length, factor)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    if extension in ("clex", "eabf"):
        return _with_own_code(config, extension, factor, OPTIONS[extension] | given)
    if extension in ("dynamic", "longrope") and train_length <= config.max_position_embeddings:
        _report_unscaled(config, extension, train_length, options or {})
    rescale_rope(config, extension, factor, OPTIONS[extension] | given)
    return config, AutoModelForCausalLM


def extended_length(config: PretrainedConfig) -> int | None:
    """Length in tokens that an extended model addresses, None where its config has none."""
    length: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    return int(length * rope["factor"]) if length and rope.get("rope_type") == "dynamic" else length


def _check_rope(config: PretrainedConfig, extension: Extension) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" not in rope:
        raise UserError(
            f"Extension '{extension}' rescales RoPE, and a '{config.model_type}' model has none, or several. "
            "Train it with --extension none.",
            "unsupported",
            "extension",
        )
    kind = rope.get("rope_type", "default")
    if kind != "default" or config.model_type.startswith("longshort_eabf_"):
        kind = "eabf" if kind == "default" else kind
        raise UserError(
            f"The base '{config.model_type}' already rescales its RoPE ({kind}). Start from the base "
            "it was made from, or use --extension none.",
            "unsupported",
            "extension",
        )


def _checked_factor(config: PretrainedConfig, extension: Extension, train_length: int, given: float | None) -> float:
    """The factor given or its default, checked against the lengths."""
    own = config.max_position_embeddings
    if given is not None:
        factor = float(given)
    elif extension == "clex":
        factor = 16.0
    else:
        factor = float(max(math.ceil(train_length / own), 2 if extension == "eabf" else 1))
    if factor == 1:
        raise UserError(
            f"train_length {train_length} is within the {own} positions of the '{config.model_type}' base, so the "
            f"extended length of extension '{extension}' does not follow from it. Give --factor.",
            "setting",
            "factor",
        )
    if train_length > factor * own:
        raise UserError(
            f"train_length {train_length} is beyond factor {factor:g} times the {own} positions of the "
            f"'{config.model_type}' base. Raise --factor to {math.ceil(train_length / own)}, or shorten "
            "--train-length.",
            "setting",
            "train_length",
        )
    return factor


def _report_unscaled(
    config: PretrainedConfig, extension: Extension, train_length: int, options: dict[str, Any]
) -> None:
    """Dynamic NTK and LongRoPE leave RoPE as it is within the original length."""
    where = f"train_length {train_length} is within the {config.max_position_embeddings} positions of the"
    if extension == "dynamic":
        logger.warning(
            "%s '%s' base, where extension 'dynamic' changes nothing: training sees unscaled RoPE.",
            where,
            config.model_type,
        )
    elif "short_factor" not in options:
        raise UserError(
            f"{where} '{config.model_type}' base, where extension 'longrope' uses its short_factor, 1 by default: "
            "training would never use the long_factor. Raise --train-length, or give short_factor.",
            "setting",
            "train_length",
        )


def _with_own_code(
    config: PretrainedConfig, extension: Extension, factor: float, options: dict[str, Any]
) -> tuple[PretrainedConfig, Any]:
    from longshort.training.extension import modeling_clex, modeling_eabf

    classes = (modeling_clex if extension == "clex" else modeling_eabf).CAUSAL_LMS
    if config.model_type not in classes:
        raise UserError(
            f"Extension '{extension}' supports {', '.join(classes)}, and the base is a "
            f"'{config.model_type}' model. Use linear, dynamic, yarn, longrope or llama3.",
            "unsupported",
            "extension",
        )
    original = config.max_position_embeddings
    rope = dict(config.rope_parameters)
    changes: dict[str, Any] = {"max_position_embeddings": int(original * factor), "rope_parameters": rope}
    if extension == "clex":
        kept = {name: options[name] for name in ("hidden_multiplier", "activation", "step")}
        rope |= {"rope_type": "clex", "original_max_position_embeddings": original, "max_t": int(factor), **kept}
    else:
        rope["rope_theta"] = float(options["theta"])
        changes |= {"eabf_original_length": original, "eabf_unscaled_layers": options["unscaled_layers"]}
    model_class = classes[config.model_type]
    # The type is the class's own; left in the dict it would name the base's.
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return model_class.config_class.from_dict(fields | changes), model_class
