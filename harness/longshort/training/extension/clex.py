"""What CLEX needs besides its model: positions to train at, and an export of one scale to stock LongRoPE."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from longshort.errors import Kind, UserError
from longshort.load_errors import why_not_loaded
from longshort.training.extension.modeling_clex import CAUSAL_LMS, base_frequencies, powers
from longshort.training.extension.rope import attention_factor_of_vllm, set_length
from longshort.training.model_card import converted_card

PREFIX = "longshort_clex_"


def clex_positions(length: int, t: int, generator: np.random.Generator) -> Tensor:
    """Draw positions of `length` tokens stretched over t times their range, [T] int64, ascending.

    The first is 0, the last length · t - 1, those between are drawn without replacement (Chen et al., 2024, its code);
    at t = 1 they are 0, 1, .. length - 1. The model divides them by max(1, length // original length), so that they
    lie within original length · t where `length` is a multiple of it, or shorter.
    """
    last = length * t - 1
    inner = generator.choice(np.arange(1, last), length - 2, replace=False, shuffle=False)
    return torch.from_numpy(np.concatenate(([0], np.sort(inner), [last])))


def export_clex(checkpoint: str | Path, output: str | Path, t: int) -> Path:
    """Write a CLEX checkpoint as a stock one with the frequencies of scale t; return its folder, `output`.

    The result is a plain Llama, Mistral or Qwen of rope_type ``longrope`` that needs no remote code. It equals CLEX
    at lengths beyond (t - 1) · L0 up to t · L0, and within L0, where CLEX is plain RoPE; between the two CLEX would
    use smaller scales.

    Raises:
        UserError: the checkpoint cannot be read or is not CLEX, t is out of its range, or the output exists or
            cannot be written.
    """
    source = str(checkpoint)
    with new_folder(Path(output).expanduser()) as folder:
        model, tokenizer = _read_clex(source, t)
        stock = _stock_model(model, t)
        if tokenizer.model_max_length == model.config.max_position_embeddings:
            tokenizer.model_max_length = stock.config.max_position_embeddings
        stock.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        how = f"Scale t = {t} of the CLEX checkpoint `{source}`, as `longshort export-clex` wrote it: plain LongRoPE."
        (folder / "README.md").write_text(converted_card(Path(output).name, how), "utf-8")
    return Path(output).expanduser()


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `output` when all is written.

    Raises:
        UserError: `output` exists or cannot be written.
    """
    if output.exists():
        raise UserError(f"{output} exists. Remove it, or choose another output.", "conflict", "output")
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        partial.rename(output)
    except (OSError, SafetensorError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{output} cannot be written: {cause}. Free some space, or choose another folder.", "unwritable", "output"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_clex(source: str, t: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The CLEX model and its tokenizer, checked to reach scale t."""
    try:
        fields, _ = PretrainedConfig.get_config_dict(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # a damaged or foreign file raises whatever its reader does
        raise _unreadable(source, error) from error
    architecture = fields.get("model_type", "").removeprefix(PREFIX)
    if architecture not in CAUSAL_LMS or fields["model_type"] == architecture:
        raise UserError(
            f"'{source}' is a '{fields.get('model_type')}' model, not CLEX: there is nothing to export.",
            "unsupported",
            "checkpoint",
        )
    rope = fields.get("rope_parameters")
    if not isinstance(rope, dict) or not isinstance(rope.get("max_t"), int):
        raise UserError(
            f"'{source}' has no max_t in the rope_parameters of its config.json. Get a complete copy.",
            "broken",
            "checkpoint",
        )
    if not (t == int(t) and 1 <= t <= rope["max_t"]):
        raise UserError(
            f"t is {t}; for this checkpoint it must be a whole number from 1 to {rope['max_t']}.", "setting", "t"
        )

    try:
        model, info = CAUSAL_LMS[architecture].from_pretrained(source, dtype="auto", output_loading_info=True)
    except Exception as error:  # as above
        raise _unreadable(source, error) from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"checkpoint '{source}' lacks {len(missing)} of its weights (the first: {missing[0]}). "
            "Get a complete copy.",
            "broken",
            "checkpoint",
        )
    return model, tokenizer


def _stock_model(model: PreTrainedModel, t: int) -> PreTrainedModel:
    """The stock model with the weights of a CLEX model and the frequencies of scale t."""
    architecture = model.config.model_type.removeprefix(PREFIX)
    rope = model.config.rope_parameters
    with torch.no_grad():
        frequencies = model.model.rotary_emb.frequencies(float(t))
    base, _ = base_frequencies(model.config)
    stock_base = powers(rope["rope_theta"], 2 * len(base)).double()  # an imported checkpoint has its own
    original = rope["original_max_position_embeddings"]
    own = ("model_type", "architectures", "auto_map", "rope_parameters")
    config = AutoConfig.for_model(architecture, **{k: v for k, v in model.config.to_dict().items() if k not in own})
    set_length(config, int(original * t))
    config.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": rope["rope_theta"],
        "original_max_position_embeddings": original,
        "factor": float(t),
        "attention_factor": 1.0,
        **attention_factor_of_vllm(1.0),
        "short_factor": (stock_base / base.double()).tolist(),
        "long_factor": (stock_base / frequencies.double()).tolist(),
    }
    state = {name: value for name, value in model.state_dict().items() if ".rotary_emb." not in name}
    stock_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    stock = stock_class.from_pretrained(None, config=config, state_dict=state, dtype=model.dtype)
    stock.generation_config = model.generation_config
    if stock.generation_config.max_length == model.config.max_position_embeddings:
        stock.generation_config.max_length = config.max_position_embeddings
    return stock


def _unreadable(source: str, error: Exception) -> UserError:
    kind: Kind = "broken" if Path(source).expanduser().exists() else "not_found"
    return UserError(f"Cannot load checkpoint '{source}': {why_not_loaded(source, error)}", kind, "checkpoint")
