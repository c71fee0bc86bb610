"""Reads a checkpoint of the official CLEX code, such as DAMO-NLP-SG/CLEX-7B-16K, as one of longshort's.

The official code (github.com/DAMO-NLP-SG/CLEX, commit 023709d) is for transformers 4.36 and has to be trusted. Its
Llama computes what `modeling_clex` does, but for two points, which are imported so that frequencies and logits are
the same:

- The base frequencies are weights (``clex_layer.inv_freq``), which training in bfloat16 has rounded.
- The input of the network has θ = 10,000, whatever the θ of the base.

Its ``log_scale`` multiplies queries by ln T / ln L0 in a text of T tokens, with FlashAttention alone; `modeling_clex`
does not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file

from longshort.errors import Kind, UserError
from longshort.load_errors import load_error
from longshort.training.compat import no_loading_report
from longshort.training.extension.clex import PREFIX, new_folder
from longshort.training.extension.modeling_clex import CAUSAL_LMS, powers
from longshort.training.model_card import converted_card

THETA = 10_000.0  # of Llama 2, and of the network's input in the official code
INVERSE_FREQUENCIES = "model.clex_layer.inv_freq"
WEIGHT_NAMES = {
    r"^model\.clex_layer\.proj_func\.ode_up_proj$": "model.rotary_emb.up",  # [d/2, λd] in both
    r"^model\.clex_layer\.proj_func\.ode_down_proj$": "model.rotary_emb.down",  # [λd, d/2]
}
# Of `rope_scaling`; what a config from before January 2024 lacks was fixed in the code. `factor` is not used.
REQUIRED = ("max_factor", "param_factor")
DEFAULTS: dict[str, Any] = {"act": "silu", "time_dt": 0.01, "factor": 1}
OFFICIAL_FIELDS = (
    "model_type",
    "architectures",
    "auto_map",
    "rope_scaling",
    "rope_theta",
    "log_scale",
    "use_flashattn",
)


def import_clex(checkpoint: str | Path, output: str | Path, *, ignore_log_scale: bool = False) -> Path:
    """Write an official CLEX checkpoint of a Llama as one of longshort's; return its folder, `output`.

    Args:
        checkpoint: folder or hub name. Its code is not run.
        output: a new folder.
        ignore_log_scale: import a checkpoint that scales queries by the length of the text, without that scaling.

    Raises:
        UserError: the checkpoint cannot be read ("not_found", "broken", ...), lacks weights or has others than its
            config says ("broken"), is not CLEX or has options that cannot be expressed ("unsupported"), or the output
            exists or cannot be written. Nothing is written then.
    """
    source, output = str(checkpoint), Path(output).expanduser()
    with new_folder(output) as folder:
        try:
            fields, _ = PretrainedConfig.get_config_dict(source)
            config = _own_config(source, fields | ({"log_scale": False} if ignore_log_scale else {}))
            with no_loading_report():  # also of a RoPE type that transformers does not have
                tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
                _set_frequencies(source, config)
                model = _load(source, config)
        except UserError:
            raise
        except Exception as error:  # a damaged or foreign file raises whatever its reader does
            wrong = load_error(source, error)
            raise UserError(wrong.message, wrong.kind, "checkpoint") from error
        model.save_pretrained(folder, save_original_format=False)  # under the names of our model
        tokenizer.save_pretrained(folder)
        how = f"The checkpoint `{source}` of the official CLEX code, as `longshort import-clex` wrote it."
        (folder / "README.md").write_text(converted_card(output.name, how, needs_remote_code=True), "utf-8")
    return output


def _own_config(source: str, fields: dict[str, Any]) -> PretrainedConfig:
    """The config of our model, from an official one."""
    scaling, model_type = fields.get("rope_scaling"), fields.get("model_type")
    if not isinstance(scaling, dict) or scaling.get("type") != "clex":
        ours = " It is one of longshort's already." if str(model_type).startswith(PREFIX) else ""
        raise _wrong(
            source, f"has no rope_scaling of type 'clex': it is not an official CLEX checkpoint.{ours} Give one."
        )
    if model_type != "llama":
        raise _wrong(source, f"is a '{model_type}' model; only those of type 'llama' can be imported. Give one.")
    if fields.get("log_scale", True):  # the default of its code
        raise _wrong(
            source,
            "scales queries by the length of the text (log_scale, true by default), which cannot be expressed. For "
            "the numbers of the official code without FlashAttention give --ignore-log-scale, or set it to false in "
            "config.json.",
        )
    if unknown := sorted(scaling.keys() - {"type", *REQUIRED, *DEFAULTS}):
        raise _wrong(source, f"has the option '{unknown[0]}' in its rope_scaling, which is unknown. Remove it.")
    values = DEFAULTS | scaling
    original: Any = fields.get("max_position_embeddings")
    must_be = dict.fromkeys((name for name in REQUIRED if not _is_whole(values.get(name))), "a whole number above 0")
    if values["act"] not in ("silu", "tanh"):
        must_be["act"] = "silu or tanh"
    if not (_is_number(values["time_dt"]) and 0 < values["time_dt"] <= 1):
        must_be["time_dt"] = "above 0, at most 1"
    if must_be:
        name, wanted = next(iter(must_be.items()))
        raise _wrong(source, f"has {name} {values.get(name)!r}; it must be {wanted}. Correct its config.json.")
    if not _is_whole(original):
        wanted = "it must be a whole number, the base's own length. Correct its config.json."
        raise _wrong(source, f"has max_position_embeddings {original!r}; {wanted}", "broken")
    rope = {
        "rope_type": "clex",
        "rope_theta": float(fields.get("rope_theta", THETA)),
        "original_max_position_embeddings": int(original),
        "max_t": int(values["max_factor"]),
        "hidden_multiplier": int(values["param_factor"]),
        "activation": values["act"],
        "step": values["time_dt"],
    }
    own = {name: value for name, value in fields.items() if name not in OFFICIAL_FIELDS}
    own |= {"max_position_embeddings": int(original) * int(values["max_factor"]), "rope_parameters": rope}
    config: PretrainedConfig = CAUSAL_LMS["llama"].config_class.from_dict(own)
    return config


def _set_frequencies(source: str, config: PretrainedConfig) -> None:
    """Keep the saved base frequencies, where they are not those of θ, and the θ of the network's input."""
    rope, dim = config.rope_parameters, config.head_dim
    exact, saved = powers(rope["rope_theta"], dim), _saved_frequencies(source)
    if saved is not None:
        if saved.shape != exact.shape or not torch.allclose(saved.float(), exact, rtol=2**-8, atol=0):  # of bfloat16
            raise _wrong(
                source,
                f"has other frequencies ({INVERSE_FREQUENCIES}) than a rope_theta of {rope['rope_theta']:g} and "
                f"{dim} dimensions give. Get a complete copy.",
                "broken",
            )
        if not torch.allclose(saved.float(), exact, rtol=1e-6, atol=0):
            rope["inv_freq"] = saved.tolist()
    if rope["rope_theta"] != THETA or "inv_freq" in rope:
        rope["network_theta"] = THETA


def _saved_frequencies(source: str) -> Tensor | None:
    """The base frequencies among the weights, [d/2]; None if there are none."""
    for index_name, name in ((SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME), (WEIGHTS_INDEX_NAME, WEIGHTS_NAME)):
        index = cached_file(source, index_name, _raise_exceptions_for_missing_entries=False)
        shards = json.loads(Path(index).read_text("utf-8"))["weight_map"] if index else {INVERSE_FREQUENCIES: name}
        shard = shards.get(INVERSE_FREQUENCIES)
        file = cached_file(source, shard, _raise_exceptions_for_missing_entries=False) if shard else None
        if file:
            weights: dict[str, Tensor] = load_state_dict(file)
            return weights.get(INVERSE_FREQUENCIES)
    return None


def _load(source: str, config: PretrainedConfig) -> PreTrainedModel:
    """The model with all of its weights, in the dtype that they have."""
    model, info = CAUSAL_LMS["llama"].from_pretrained(
        source,
        config=config,
        dtype="auto",
        key_mapping=WEIGHT_NAMES,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below by name
    )
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith(".inv_freq")]
    mismatched = [str(entry[0]) for entry in info["mismatched_keys"]]
    for found, what in (
        (info["missing_keys"], "lacks {} of its weights"),
        (mismatched, "has {} weights of other shapes than its config says"),
        (unexpected, "has {} weights that a CLEX model does not have"),
    ):
        if found:
            raise _wrong(source, f"{what.format(len(found))} (the first: {min(found)}). Get a complete copy.", "broken")
    return model


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value >= 1 and value == int(value)


def _wrong(source: str, what: str, kind: Kind = "unsupported") -> UserError:
    return UserError(f"checkpoint '{source}' {what}", kind, "checkpoint")
