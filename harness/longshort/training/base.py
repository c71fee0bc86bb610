"""The model and tokenizer a run starts from: a checkpoint, or a config to initialize at random."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from longshort.errors import UserError
from longshort.load_errors import load_error
from longshort.scoring.causality import require_causal
from longshort.training.byte_tokenizer import byte_tokenizer
from longshort.training.compat import no_loading_report, weights_in_every_process
from longshort.training.config import TrainConfig
from longshort.training.extension import extend_context, extended_length
from longshort.training.extension.options import LEARNED_FREQUENCIES
from longshort.training.lora import EMBEDDINGS_AND_NORMS, quantization_config
from longshort.training.windows import default_bos, require_embedding

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """What the model of a run is made from, without weights.

    Attributes:
        config: of the model, its context extended.
        model_class: what builds the model from it.
        original_length: of the base, before its context was extended.
        trains_embeddings_and_norms: whether these are trained in full next to LoRA's adapters.
    """

    config: PretrainedConfig
    model_class: Any
    original_length: int | None = None
    trains_embeddings_and_norms: bool = False

    @property
    def num_embeddings(self) -> int | None:
        """Number of tokens that the model has an embedding for."""
        return getattr(self.config.get_text_config(), "vocab_size", None)

    @property
    def is_clex(self) -> bool:
        """Whether the frequencies are learned: drawn positions in training, full training next to LoRA."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        return rope.get("rope_type") == "clex"

    @property
    def trained_in_full(self) -> tuple[str, ...]:
        """Parts of the names of what is trained next to LoRA's adapters."""
        frequencies = (LEARNED_FREQUENCIES,) if self.is_clex else ()
        return frequencies + EMBEDDINGS_AND_NORMS * self.trains_embeddings_and_norms

    @property
    def needs_remote_code(self) -> bool:
        """Whether the finished checkpoint brings its own code."""
        return self.model_class is not AutoModelForCausalLM or bool(getattr(self.config, "auto_map", None))


@dataclass(frozen=True, kw_only=True)
class Base(Architecture):
    """What a run starts from, all but the weights.

    Attributes:
        tokenizer: the base's, or the one asked for. Its limit is at least the extended length.
        bos_token_id: what the tokenizer prepends to a text by default, if it does.
    """

    tokenizer: PreTrainedTokenizerBase
    bos_token_id: int | None


def load_base(config: TrainConfig) -> Base:
    """Load the tokenizer and the model's config, with its context extended.

    Raises:
        UserError: one cannot be loaded, or model, tokenizer and training context length do not fit.
    """
    source = config.base or config.model_config
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    if config.tokenizer == "bytes":
        tokenizer = byte_tokenizer()
    else:
        own = hub if config.tokenizer is None else {"trust_remote_code": config.trust_remote_code}
        tokenizer = _load("tokenizer", AutoTokenizer.from_pretrained, config.tokenizer or source, **own)
    model = load_architecture(config)
    _check_fit(config, model.config, tokenizer)
    if config.base is None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(model.config, name, getattr(tokenizer, name))
    if config.extension != "none":
        tokenizer.model_max_length = max(tokenizer.model_max_length, extended_length(model.config) or 0)
    return Base(**vars(model), tokenizer=tokenizer, bos_token_id=default_bos(tokenizer))


def load_architecture(config: TrainConfig) -> Architecture:
    """Load the model's config alone, with its context extended.

    Raises:
        UserError: it cannot be loaded, or cannot be extended this way.
    """
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    model_config = _load("model config", AutoConfig.from_pretrained, config.base or config.model_config, **hub)
    original_length = getattr(model_config, "max_position_embeddings", None)
    model_config, model_class = extend_context(
        model_config,
        config.extension,
        train_length=config.train_length,
        factor=config.factor,
        options=config.extension_options,
    )
    return Architecture(model_config, model_class, original_length, config.train_embeddings_and_norms)


def load_model(config: TrainConfig, base: Base, *, quantize: bool = False) -> PreTrainedModel:
    """Load the weights in float32, or initialize them under the seed; in 4 bits where `quantize` is set.

    Raises:
        UserError: they cannot be loaded, or are an encoder's.
    """
    kwargs: dict[str, Any] = {"dtype": torch.float32}
    if base.model_class is AutoModelForCausalLM:
        kwargs["trust_remote_code"] = config.trust_remote_code
    if config.base is not None:
        if quantize:
            kwargs["quantization_config"] = quantization_config()
        kwargs |= {"config": base.config, "revision": config.revision, "output_loading_info": True}
        kwargs["ignore_mismatched_sizes"] = True  # reported below by name; transformers raises without one
        with weights_in_every_process(), no_loading_report():  # `_check_complete` reports the same
            model, info = _load("model", base.model_class.from_pretrained, config.base, **kwargs)
        _check_complete(config, base, info)
        generation = getattr(model, "generation_config", None)
        if config.extension != "none" and generation is not None and generation.max_length == base.original_length:
            generation.max_length = extended_length(base.config)
        require_causal(model)
        return model
    with torch.random.fork_rng():  # a snapshot builds the base anew in mid-run
        torch.manual_seed(config.seed)
        return random_model(config, base)


def random_model(config: TrainConfig, architecture: Architecture) -> PreTrainedModel:
    """Build a model in float32 whose weights are initialized at random.

    Raises:
        UserError: the config does not describe a model.
    """
    kwargs: dict[str, Any] = {"dtype": torch.float32}
    if architecture.model_class is AutoModelForCausalLM:
        kwargs["trust_remote_code"] = config.trust_remote_code
    build = getattr(architecture.model_class, "from_config", None) or architecture.model_class._from_config
    model: PreTrainedModel = _load("model", build, architecture.config, **kwargs)
    return model


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Recompute activations in the backward pass."""
    # Reentrant checkpointing loses the gradient of frozen or learned inputs.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _load(what: str, loader: Callable[..., Any], source: Any, **kwargs: Any) -> Any:
    try:
        return loader(source, **kwargs)
    except Exception as error:  # a damaged or foreign file raises whatever its reader does
        if isinstance(source, PretrainedConfig):
            raise load_error(None, error, what, source.model_type, source.to_dict()) from error
        raise load_error(source, error, what) from error


def _check_complete(config: TrainConfig, base: Base, info: dict[str, Any]) -> None:
    new = (LEARNED_FREQUENCIES,) if config.extension == "clex" else ()
    missing = sorted(name for name in info["missing_keys"] if not any(part in name for part in new))
    wrong = missing + sorted(str(entry[0]) for entry in info.get("mismatched_keys", ()))
    if wrong:
        raise UserError(
            f"checkpoint '{config.base}' lacks {len(wrong)} weights of its model, or has them in another shape "
            f"(the first: {wrong[0]}). Get a complete copy of it.",
            "broken",
            "base",
        )
    if left_over := sorted(info["unexpected_keys"]):
        logger.warning(
            "checkpoint '%s' has %d weights that its model does not have; they are skipped (the first: %s).",
            config.base,
            len(left_over),
            left_over[0],
        )


def _check_fit(config: TrainConfig, model: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = getattr(model.get_text_config(), "vocab_size", None)
    if config.base is not None:  # its tokenizer may have more tokens; those that occur are checked as they are read
        require_embedding(default_bos(tokenizer), tokenizer, vocabulary)
    elif vocabulary is not None and vocabulary < len(tokenizer):
        raise UserError(
            f"The tokenizer has {len(tokenizer)} tokens, the model a vocab_size of {vocabulary}. "
            "Raise vocab_size in the config, or use a tokenizer of fewer tokens.",
            "setting",
            "tokenizer",
        )
    longest = getattr(model, "max_position_embeddings", None)
    # Dynamic RoPE keeps its original length in that field, and reads longer windows all the same.
    if longest is not None and config.extension != "dynamic" and config.train_length > longest:
        raise UserError(
            f"train_length {config.train_length} is beyond the {longest} positions of the model. "
            "Shorten it, or extend the model (--extension linear --factor 2).",
            "setting",
            "train_length",
        )
