"""Which of lm-eval's model arguments make another model, and the names of such variants of a checkpoint."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

# What names the checkpoint and the weights put on it (`lora_local_path` is vLLM's name for an adapter).
CHECKPOINT = ("pretrained", "model", "path", "engine")
ADDED = ("peft", "delta", "lora_local_path")

# How and where a model runs. A secret must not reach a table or a message, so tokens are here too.
RUNTIME = frozenset(
    """
    auth_token backend batch_size block_size ca_cert_path cache_dir chunked_prefill_size cpu_offload_gb
    data_parallel_size device device_map device_map_option disable_custom_all_reduce disable_log_requests
    disable_log_stats distributed_executor_backend download_dir dp_size enable_chunked_prefill enable_prefix_caching
    enforce_eager force_download gpu_memory_utilization gpus header local_files_only logits_cache low_cpu_mem_usage
    max_batch_size max_cpu_memory max_images max_lora_rank max_memory max_memory_per_gpu max_num_batched_tokens
    max_num_seqs max_parallel_loading_workers max_retries mem_fraction_static num_concurrent offload_buffers
    offload_folder offload_state_dict parallelize pipeline_parallel_size proxies resume_download seed swap_space
    tensor_parallel_size timeout token tp_plan tp_size trust_remote_code use_auth_token use_safetensors
    verify_certificate weights_only worker_use_ray
    """.split()  # noqa: SIM905  (a list literal would take a line for each)
)
# What a model is given to read and where it is served: can change a number, but not the model.
SETTINGS = frozenset(
    """
    api_version base_url context_length eos_string max_gen_toks max_length max_model_len tokenized_requests
    tokenizer_backend truncate truncation truncation_side
    """.split()  # noqa: SIM905  (a list literal would take a line for each)
)
OF_TOKENIZER = frozenset({"tokenizer", "tokenizer_mode", "tokenizer_revision", "use_fast_tokenizer"})
# The arithmetic of the same weights: in a name only where variants differ in it.
PRECISION = ("attn_implementation", "dtype")

DEFAULTS: dict[str, str] = {
    "autogptq": "False",
    "dtype": "auto",
    "gptqmodel": "False",
    "kv_cache_dtype": "auto",
    "load_format": "auto",
    "load_in_4bit": "False",
    "load_in_8bit": "False",
    "tokenizer_mode": "auto",
    "use_fast_tokenizer": "True",
}
DTYPES = {"half": "float16", "float": "float32", "double": "float64"}  # torch's other names
LONGEST = 48  # characters of a value in a name
DIGITS = 8


def parse_model_args(model_args: Any) -> dict[str, Any]:
    """Return the arguments as a mapping; lm-eval records them as given: a mapping, JSON, or ``key=value,key=value``."""
    if isinstance(model_args, Mapping):
        return dict(model_args)
    text = str(model_args or "").strip()
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except (ValueError, RecursionError):
            return {}
    parts = (part.partition("=") for part in text.split(","))
    return {name.strip(): value.strip() for name, _, value in parts if name.strip()}


def identity_args(model_args: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that can change the model, by name, as text; those that have their default are omitted.

    All arguments count, also unknown ones, but for the name of the checkpoint, its revision and adapters, how and where
    it runs (`RUNTIME`), and what it is given to read (`SETTINGS`). A tokenizer does not count where it is the
    checkpoint's own, or the model is behind an API, where it only counts tokens.
    """
    passed_over = {*CHECKPOINT, *ADDED, "revision", *RUNTIME, *SETTINGS}
    if "base_url" in model_args:
        passed_over |= OF_TOKENIZER
    found = {}
    for name in sorted(model_args.keys() - passed_over):
        text = as_text(model_args[name])
        if name == "dtype":
            text = plain_dtype(text)
        elif name == "tokenizer" and text:
            text = normal_path(text)
            text = "" if text == normal_path(as_text(model_args.get("pretrained"))) else text
        if text and text != DEFAULTS.get(name):
            found[name] = text
    return found


def plain_dtype(text: str) -> str:
    """``torch.half`` → ``float16``."""
    text = text.removeprefix("torch.")
    return DTYPES.get(text, text)


def as_text(value: Any) -> str:
    """Return one text for a value, whether it was recorded as JSON or as text; none is empty."""
    if isinstance(value, str):
        return {"none": "", "null": "", "true": "True", "false": "False"}.get(value.lower(), value)
    if value is None or isinstance(value, (bool, int, float)):
        return "" if value is None else str(value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


def normal_path(name: str) -> str:
    """``./name`` and ``name/`` → ``name``: one checkpoint, whichever way it was named."""
    return posixpath.normpath(name) if name else ""


def variant_suffix(arguments: Mapping[str, str]) -> str:
    """Return what a checkpoint's name gets for its arguments, as ``+load_in_4bit=True+subfolder=step10``."""
    return "".join(f"+{name}={_shown(arguments[name])}" for name in sorted(arguments))


def short_name(checkpoint: str) -> str:
    """Return the last part of a checkpoint's path, with the arguments that distinguish it."""
    match = re.search(r"\+\w+=", checkpoint)
    end = match.start() if match else len(checkpoint)
    return PurePath(checkpoint[:end]).name + checkpoint[end:]


def _shown(value: str) -> str:
    """The value on one line; a long one is cut and its hash appended, so that names stay unique."""
    line = " ".join(value.split())
    if line == value and len(value) <= LONGEST:
        return value
    digest = hashlib.sha256(value.encode("utf-8", "backslashreplace")).hexdigest()[:DIGITS]
    return f"{line[: LONGEST // 2]}…{digest}"
