"""LoRA adapters for training (Hu et al., ICLR 2022), and how they become a plain checkpoint again.

Training saves only what it changes. That goes into a fresh base in full precision and is merged there, so a 4-bit
base (QLoRA, Dettmers et al., NeurIPS 2023) is never merged itself, and the model in training stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import is_bitsandbytes_available

from longshort.errors import UserError
from longshort.training.config import TrainConfig

# Parts of the names of what LongLoRA (Chen et al., ICLR 2024) trains in full next to its adapters: its code's
# trainable_params "embed,norm". The head of a Llama, lm_head, is not among them, unless it shares the embedding.
EMBEDDINGS_AND_NORMS = ("embed", "norm")

# What FSDP and its activation checkpointing add to the names of parameters.
WRAPPERS = re.compile(r"_(fsdp|checkpoint)_wrapped_module\.")


def add_lora(
    model: PreTrainedModel,
    rank: int,
    alpha: float,
    dropout: float,
    extra_trainable: Sequence[str] = (),
    *,
    targets: Sequence[str] = (),
    modules_to_save: Sequence[str] = (),
) -> PeftModel:
    """Freeze a model and put trainable adapters on its layers.

    Args:
        model: a causal LM; its layers are replaced in place.
        rank: of the adapters.
        alpha: their outputs are scaled by alpha / rank.
        dropout: of their inputs, in training.
        extra_trainable: parameters with one of these in their names are trained in full, without adapters.
        targets: ends of the names of the layers that get adapters; by default every linear layer but the LM head.
        modules_to_save: ends of the names of modules that are trained in full, as copies that belong to the adapter.

    Raises:
        UserError: the model has no such module, cannot have an adapter there, or ties it to another; no parameter has
            "embed" or "norm" in its name, and these were to be trained.
    """
    if set(EMBEDDINGS_AND_NORMS) <= set(extra_trainable):
        names = [name for name, _ in model.named_parameters()]
        if missing := [part for part in EMBEDDINGS_AND_NORMS if not any(part in name for name in names)]:
            raise UserError(
                f"A '{model.config.model_type}' model has no parameter with '{missing[0]}' in its name, by which "
                "LongLoRA finds embeddings and norms. Omit --train-embeddings-and-norms.",
                "unsupported",
                "train_embeddings_and_norms",
            )
    _module_names(model, "lora_targets", targets)
    in_full = _module_names(model, "lora_modules_to_save", modules_to_save)  # PEFT would take norm for layernorm too
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only ever divided by the rank
        lora_dropout=dropout,
        target_modules=list(targets) or "all-linear",
        modules_to_save=in_full or None,
        exclude_modules=f".*({'|'.join(map(re.escape, extra_trainable))}).*" if extra_trainable else None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # as GPT-2 keeps its weights
        task_type="CAUSAL_LM",
    )
    try:
        adapted = cast(PeftModel, get_peft_model(model, config))
    except ValueError as error:  # such as a normalization
        raise UserError(
            f"lora_targets {','.join(targets)}: {str(error).splitlines()[0]}", "setting", "lora_targets"
        ) from error
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in extra_trainable):
            parameter.requires_grad_(True)
    return adapted


def _module_names(model: PreTrainedModel, field: str, ends: Sequence[str]) -> list[str]:
    """The names of all modules with one of these ends; an end that none has, and tied weights, are refused."""
    modules = dict(model.named_modules())
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    is_tied = embeddings[1] is not None and embeddings[0].weight is embeddings[1].weight
    names = []
    for end in ends:
        found = [name for name in modules if name == end or name.endswith(f".{end}")]
        if not found:
            known = sorted({name.rpartition(".")[2] for name in modules if name and not name[-1].isdigit()})
            raise UserError(f"{field} contains '{end}'; the model has {', '.join(known)}.", "setting", field)
        if is_tied and any(modules[name] is embedding for name in found for embedding in embeddings):
            raise UserError(
                f"{field} contains '{end}', but the model ties its embeddings to its LM head: training one alone "
                "would separate them. Omit it.",
                "unsupported",
                field,
            )
        names += found
    return names


def trained_state(model: PeftModel, full_state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copy everything that training changes to the CPU: adapters, and what is trained in full.

    Args:
        model: as `add_lora` made it, without the wrapper of DDP or FSDP around the whole.
        full_state: where parameters are sharded, the gathered state of `model`.
    """
    trainable = {WRAPPERS.sub("", name): value for name, value in model.named_parameters() if value.requires_grad}
    state = trainable if full_state is None else full_state
    return {name: state[name].detach().to("cpu", copy=True) for name in trainable}


def merged(
    base: PreTrainedModel,
    rank: int,
    alpha: float,
    trained: Mapping[str, Tensor],
    extra_trainable: Sequence[str] = (),
    **modules: Any,
) -> PreTrainedModel:
    """Give a base what was trained and add the adapters to its weights: W + alpha / rank · B A.

    Args:
        base: the model that was trained, as it was before, in full precision; it is changed in place.
        rank, alpha, extra_trainable, modules: as given to `add_lora`.
        trained: what `trained_state` returned.

    Returns:
        `base`, of its own class, without adapters.

    Raises:
        ValueError: `trained` belongs to another model, or to other settings.
    """
    adapted = add_lora(base, rank, alpha, 0.0, extra_trainable, **modules)
    expected = {name for name, value in adapted.named_parameters() if value.requires_grad}
    if wrong := expected ^ trained.keys():
        raise ValueError(f"{len(wrong)} tensors are missing or unknown, such as {min(wrong)}.")
    adapted.load_state_dict(trained, strict=False)
    return cast(PreTrainedModel, adapted.merge_and_unload())


def lora_modules(config: TrainConfig) -> dict[str, tuple[str, ...]]:
    """Return the settings that choose modules, as `add_lora` and `merged` take them."""
    return {"targets": config.lora_targets, "modules_to_save": config.lora_modules_to_save}


def save_adapter(
    model: PeftModel, folder: Path, state: dict[str, Tensor], base: str | None, revision: str | None
) -> None:
    """Write an adapter without its base, for ``PeftModel.from_pretrained``.

    Args:
        model: as `add_lora` made it.
        folder: to write to.
        state: the gathered state of `model`.
        base, revision: name and revision of the base, which the adapter records.
    """
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    model.save_pretrained(str(folder), state_dict={WRAPPERS.sub("", name): value for name, value in state.items()})


def can_quantize() -> bool:
    """Whether a 4-bit base can be trained here: CUDA, and bitsandbytes is installed."""
    return torch.cuda.is_available() and bool(is_bitsandbytes_available())


def quantization_config() -> BitsAndBytesConfig:
    """Return QLoRA's settings of a 4-bit base: NF4, quantized constants, bfloat16 arithmetic."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
