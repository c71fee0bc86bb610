"""Context extension by rescaled RoPE, in transformers' own terms, written so that other engines read it alike.

Which engine reads which method, and how that was tested: docs/loaders.md.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longshort.errors import UserError
from longshort.training.extension.options import Extension, are_factors

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def rescale_rope(config: PretrainedConfig, extension: Extension, factor: float, options: dict[str, Any]) -> None:
    """Set `config.rope_parameters` so that a model built from `config` addresses `factor` times its length L0.

    ``linear``: position interpolation (Chen et al., 2023); every position id is divided by `factor`. LongQLoRA
    (Yang, 2023) uses it too, and trains it in its own way.
    ``yarn``: YaRN (Peng et al., 2024).
    ``llama3``: as in Llama 3.1; frequencies of long wavelengths alone are divided.
    ``longrope``: LongRoPE (Ding et al., 2024): beyond L0 frequency i is divided by ``long_factor[i]``, within it by
    ``short_factor[i]``, 1 by default. The paper finds its factors by a search, which is not done here: bring them
    as `long_factor`. Without them the NTK-aware ones are used, factor^(2i / (d - 2)), d the dimensions rotated.
    All these set `max_position_embeddings` to the extended length. vLLM multiplies the length of a ``linear`` config
    by its factor, and takes the smallest of several fields for it; so `max_sequence_length` holds L0 there.
    ``dynamic``: NTK-aware frequencies that follow the sequence's length. transformers takes the original
    length from `max_position_embeddings`, so there that field keeps it; a larger one would switch the method
    off. Evaluators that truncate to it must be told the extended length.

    Raises:
        UserError: factors of LongRoPE that cannot be read, or are not one number above 0 for each frequency.
    """
    original = config.max_position_embeddings
    given = {name: value for name, value in options.items() if value is not None}
    if "attention_factor" in given:
        given["attention_factor"] = float(given["attention_factor"])  # transformers takes no whole number
    if extension == "longrope":
        half = _rotary_dim(config) // 2
        long = given.get("long_factor", [factor ** (i / (half - 1)) for i in range(half)])
        given["long_factor"] = _read_factors("long_factor", long, half)
        given["short_factor"] = _read_factors("short_factor", given.get("short_factor", [1.0] * half), half)
        if "attention_factor" in given or not (original * factor).is_integer():
            scaling = given.get("attention_factor", math.sqrt(1 + math.log(factor) / math.log(original)))
            given |= attention_factor_of_vllm(scaling)
    if extension in ("yarn", "longrope", "llama3"):  # on the others transformers warns of it
        given["original_max_position_embeddings"] = original
    if extension == "longqlora":
        extension, given = "linear", {}
    # The other keys stay: `rope_theta`, and the `partial_rotary_factor` of some architectures.
    config.rope_parameters = {**config.rope_parameters, "rope_type": extension, "factor": factor, **given}
    if extension == "linear":
        config.max_position_embeddings, config.max_sequence_length = int(original * factor), original
    elif extension != "dynamic":
        set_length(config, int(original * factor))


def set_length(config: PretrainedConfig, length: int) -> None:
    """Set `max_position_embeddings`, and the other fields of a length that a config happens to have, to `length`.

    vLLM takes the smallest of them.
    """
    others = ("max_sequence_length", "max_seq_length", "max_seq_len", "seq_length", "seq_len", "model_max_length")
    for name in ("max_position_embeddings", *(name for name in others if hasattr(config, name))):
        setattr(config, name, length)


def attention_factor_of_vllm(attention_factor: float) -> dict[str, float]:
    """Parameters of ``longrope`` from which vLLM takes the attention factor; it does not read `attention_factor`.

    Without them vLLM uses sqrt(1 + ln s / ln L0), where s is `max_position_embeddings` divided by L0. transformers
    does not use them and says so when it loads the config: "Unrecognized keys in `rope_parameters`".
    """
    return {"short_mscale": attention_factor, "long_mscale": attention_factor}


def _rotary_dim(config: PretrainedConfig) -> int:
    """Dimensions of a head that RoPE rotates, d."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _read_factors(name: str, value: list[float] | str, count: int) -> list[float]:
    """The list itself, or the one in the JSON file of that path."""
    if isinstance(value, str):
        try:
            value = json.loads(Path(value).expanduser().read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{name} cannot be read from '{value}', which must be a JSON file: {error}.", "setting", name
            ) from error
    if not are_factors(value) or len(value) != count:
        raise UserError(
            f"{name} must be a list of {count} numbers above 0, one for each frequency of this model.", "setting", name
        )
    return [float(number) for number in value]
