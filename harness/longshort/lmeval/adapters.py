"""PEFT adapters on a checkpoint: the vocabulary they were trained with, and weights that PEFT does not load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor

from longshort.errors import UserError
from longshort.lmeval.trained_in_full import FILE, load_trained_in_full, read_trained_in_full
from longshort.load_errors import load_error
from longshort.scoring.forward import without_wrappers

PREFIX = "base_model.model."  # of PEFT's names, before the name that the checkpoint has
WEIGHT_FILES = (".bin", ".pt", ".pth", ".safetensors")
# What trainers save next to an adapter and evaluation does not need; the heads are those of reward models.
NOT_TRAINED = (
    "adapter_model",
    "training_args",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "random_states",
    "sampler",
    "value_head",
    "ggml-adapter-model",
)


def attach_adapter(model: Any, source: str, checkpoint: str, revision: str | None = None) -> PeftModel:
    """Put a PEFT adapter on a checkpoint, whose vocabulary is resized to that of the adapter, if it has one.

    What LongLoRA has trained in full next to the adapter is loaded too.

    lm-eval resizes it to the number of the tokenizer's tokens instead. Most embeddings are padded beyond that, and
    without the padding the probabilities differ from those of the merged model.

    Args:
        source: folder or hub name of the adapter.
        checkpoint: name of the checkpoint, for messages.

    Raises:
        UserError: it cannot be loaded or does not fit the checkpoint ("broken"), or has weights that PEFT does not
            load ("unsupported").
    """
    require_no_other_weights(source, revision)
    try:
        own = model.get_input_embeddings().weight.shape[0]
        rows = adapter_vocabulary(model, own, source, revision)
        if rows != own:
            model.resize_token_embeddings(rows, mean_resizing=False)
        if has_trained_in_full(source, revision):
            load_trained_in_full(model, read_trained_in_full(source, revision), own, source)
        return PeftModel.from_pretrained(model, source, revision=revision).eval()
    except (UserError, UserWarning):  # the warning is one of missing weights, see `no_random_weights`
        raise
    except Exception as error:  # a damaged adapter raises whatever its reader does
        wrong = load_error(source, error, "adapter", f"{source}' on '{checkpoint}")
        advice = " Give the checkpoint that it was trained on." if wrong.kind == "broken" else ""
        raise UserError(wrong.message + advice, wrong.kind, "peft") from error


def adapter_vocabulary(model: Any, own: int, source: str, revision: str | None = None) -> int:
    """Return the number of embeddings that an adapter was trained with: its own, if it saves any, or the checkpoint's.

    Args:
        model: the checkpoint, with or without the adapter.
        own: number of the checkpoint's embeddings.

    Raises:
        UserError: it has more than the checkpoint, but not all of them, so that some would be random ("broken").
    """
    in_full = read_trained_in_full(source, revision) if has_trained_in_full(source, revision) else {}
    weights = load_peft_weights(source, device="cpu", revision=revision) | {
        f"{PREFIX}{name}": weight for name, weight in in_full.items()
    }
    found = list(_vocabulary_weights(model, weights))
    rows = max((rows for _, rows, _ in found), default=own)
    if rows <= own:
        return rows
    saved = {module for module, _, is_whole in found if is_whole}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    missing = _vocabulary_modules(model) - saved
    # One of them suffices if they are shared, or if LongLoRA has trained the embedding: see `load_trained_in_full`.
    if missing and not (saved and (in_full or embedding.weight is getattr(head, "weight", None))):
        raise UserError(
            f"adapter '{source}' was trained with {rows} tokens and its checkpoint has {own}, but it lacks the new "
            f"rows of {min(missing)}, which would be random. Give the merged model.",
            "broken",
            "peft",
        )
    return rows


def has_trained_in_full(source: str, revision: str | None = None) -> bool:
    """Whether an adapter has a ``trainable_params.bin`` next to it."""
    return FILE in _files(source, revision)


def require_no_other_weights(source: str, revision: str | None = None) -> None:
    """Refuse an adapter with weights next to it that neither PEFT nor `load_trained_in_full` loads.

    Raises:
        UserError: there are some ("unsupported").
    """
    names = [name for name in _files(source, revision) if name.endswith(WEIGHT_FILES)]
    others = sorted(name for name in names if not name.startswith((*NOT_TRAINED, FILE)))
    if others:
        raise UserError(
            f"adapter '{source}' has '{others[0]}' next to its weights, which PEFT does not load. If it was trained "
            "with the adapter, merge it and the adapter into the checkpoint and give that; else move the file "
            "elsewhere.",
            "unsupported",
            "peft",
        )


def _vocabulary_weights(model: Any, weights: dict[str, Tensor]) -> Iterator[tuple[str, int, bool]]:
    """An adapter's weights of embedding and LM head: the module, its rows, and whether it is saved as a whole."""
    for name, weight in weights.items():
        for module in _vocabulary_modules(model):
            if not name.startswith(f"{PREFIX}{module}."):
                continue
            part = name.removeprefix(f"{PREFIX}{module}.")
            if part == "lora_embedding_A":  # [r, V]
                yield module, weight.shape[1], False
            elif part == "lora_B.weight" or (part.endswith("weight") and "lora_" not in part):  # [V, r], [V, H]
                yield module, weight.shape[0], "lora_" not in part


def _vocabulary_modules(model: Any) -> set[str]:
    """Names of embedding and LM head in the checkpoint."""
    inner: Any = without_wrappers(model)
    embeddings = (inner.get_input_embeddings(), inner.get_output_embeddings())
    return {name for name, module in inner.named_modules() if any(module is embedding for embedding in embeddings)}


def _files(source: str, revision: str | None) -> list[str]:
    """The files at the top of a folder or hub repository; offline, those that are in the cache."""
    if Path(source).is_dir():
        return [file.name for file in Path(source).iterdir() if file.is_file()]
    try:
        if constants.HF_HUB_OFFLINE:
            return _files(snapshot_download(source, revision=revision), None)
        return [name for name in HfApi().list_repo_files(source, revision=revision) if "/" not in name]
    except Exception as error:  # of the hub's client, or of what it is built on
        raise load_error(source, error, "adapter") from error
