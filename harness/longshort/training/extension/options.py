"""The ways to extend a context, their options and the papers' defaults; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from longshort.errors import UserError

Extension = Literal["none", "linear", "dynamic", "yarn", "longrope", "llama3", "clex", "eabf", "longqlora"]

LEARNED_FREQUENCIES = "rotary_emb"  # in the names of CLEX's parameters; other rotary embeddings have none

# None: transformers' own default, or one that follows from the model.
OPTIONS: dict[Extension, dict[str, Any]] = {
    "none": {},
    "linear": {},
    "dynamic": {},
    "yarn": {"beta_fast": None, "beta_slow": None, "attention_factor": None, "truncate": None},
    "longrope": {"long_factor": None, "short_factor": None, "attention_factor": None},
    "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    # learning_rate: of the learned frequencies, whatever that of the other weights; the paper's for all of them.
    # Adam moves a weight by about it in each step, so that at 1e-3 the frequencies run away within 100 steps.
    # activation, unscaled_layers: the papers'; the published code has tanh (since 2024) and 0, as the presets do.
    "clex": {"hidden_multiplier": 1, "activation": "silu", "step": 0.1, "learning_rate": 2e-5},
    "eabf": {"theta": 500_000.0, "unscaled_layers": 2},
    "longqlora": {"groups": 4},
}

# What other engines make of a checkpoint. Details and versions: docs/loaders.md.
_MISREAD: dict[Extension, str] = {
    "dynamic": "vLLM and llama.cpp read 'dynamic' as plain RoPE; use transformers",
    "yarn": "llama.cpp ignores the options of 'yarn'",
    "longrope": "llama.cpp reads 'longrope' as plain RoPE; vLLM uses long_factor in all texts unless max_model_len "
    "is at most the original length",
    "llama3": "llama.cpp reads 'llama3' as plain RoPE in Qwen 2 and 3",
    "clex": "vLLM and llama.cpp do not have CLEX; export-clex writes one scale of it for vLLM",
    "eabf": "vLLM and llama.cpp do not have EABF; use transformers",
}


def misread(extension: Extension, options: dict[str, Any] | None) -> str | None:
    """How other engines misread a checkpoint of the extension, in one sentence; None if they read it alike."""
    if extension == "yarn" and all(value is None for value in (options or {}).values()):
        return None
    return _MISREAD.get(extension)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def are_factors(value: Any) -> bool:
    """Whether this is a list of numbers above 0."""
    return isinstance(value, list) and all(_is_number(number) and number > 0 for number in value)


_POSITIVE = ("a number above 0", lambda value: _is_number(value) and value > 0)
_FACTORS = (
    "a list of numbers above 0, or the path of a JSON file with one",
    lambda value: isinstance(value, str) or are_factors(value),
)
_MUST_BE: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "beta_fast": _POSITIVE,
    "beta_slow": _POSITIVE,
    "attention_factor": _POSITIVE,
    "truncate": ("true or false", lambda value: isinstance(value, bool)),
    "long_factor": _FACTORS,
    "short_factor": _FACTORS,
    "low_freq_factor": _POSITIVE,
    "high_freq_factor": _POSITIVE,
    "hidden_multiplier": _POSITIVE,
    "activation": ("silu or tanh", lambda value: value in ("silu", "tanh")),
    "step": ("a number above 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1),
    "learning_rate": _POSITIVE,
    "theta": ("a number above 1", lambda value: _is_number(value) and value > 1),
    "unscaled_layers": ("a whole number, 0 or more", lambda value: type(value) is int and value >= 0),
    "groups": ("a whole number above 0", lambda value: type(value) is int and value > 0),
}


def check_extension(extension: Extension, factor: float | None, options: dict[str, Any] | None) -> None:
    """Refuse a factor or options that the extension does not take.

    Raises:
        UserError: as said.
    """
    if extension == "none" and factor is not None:
        raise UserError(
            f"A factor has no effect without an extension. Choose one of {', '.join(list(OPTIONS)[1:])}.",
            "setting",
            "factor",
        )
    if factor is not None and not 1 < factor < math.inf:
        raise UserError(f"factor is {factor}; extension '{extension}' requires one above 1.", "setting", "factor")
    if extension == "clex" and factor is not None and factor != int(factor):
        raise UserError(
            f"factor is {factor}; for extension 'clex' it is the greatest t and must be a whole number.",
            "setting",
            "factor",
        )
    known = OPTIONS[extension]
    for name, value in (options or {}).items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UserError(f"extension '{extension}' has no option '{name}'; {takes}.", "setting", "extension_options")
        must_be, is_right = _MUST_BE[name]
        if value is not None and not is_right(value):
            raise UserError(
                f"option '{name}' of extension '{extension}' is {value!r}; it must be {must_be}.",
                "setting",
                "extension_options",
            )
    if extension == "llama3":
        low, high = ((options or {}).get(name) or known[name] for name in ("low_freq_factor", "high_freq_factor"))
        if low >= high:
            raise UserError(
                f"low_freq_factor is {low}; extension 'llama3' requires it to be below high_freq_factor, {high}.",
                "setting",
                "extension_options",
            )
