"""The study's checkpoints: twelve bases over bytes, and what `longshort train` makes of each.

Families differ in how positions are told, in depth and width, and in the seed. All bases read the same text in
windows of 128 bytes; within a family all runs start from one base and read the same sequences in the same order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.results import write_atomically
from longshort.training.config import TrainConfig
from longshort.training.presets import preset

TRAIN_LENGTH = 128
LENGTHS = (128, 192, 256, 512, 1024)
FACTOR = 4.0  # the extended checkpoints are made for 512 bytes
POSITIONS = 1024  # the longest table of learned positions: 8 times the train length

VOCABULARY = {"vocab_size": 257, "tie_word_embeddings": True}
NO_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _llama_like(model_type: str, hidden: int = 128, layers: int = 4, heads: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": TRAIN_LENGTH,
        **VOCABULARY,
        **NO_TOKENS,
        **more,
    }


@dataclass(frozen=True)
class Family:
    """Runs that share a base.

    Attributes:
        config: of the base, as in its config.json.
        seed: of the base.
        is_extended: whether RoPE is rescaled, too: Llamas, for which CLEX and EABF are made.
    """

    config: dict[str, Any]
    seed: int = 0
    is_extended: bool = False


_BLOOM = {"model_type": "bloom", "hidden_size": 128, "n_layer": 4, "n_head": 4, **VOCABULARY, **NO_TOKENS}
_NO_POSITIONS = _llama_like("smollm3", no_rope_layers=[0] * 4)

FAMILIES = {
    "rope": Family(_llama_like("llama"), is_extended=True),
    "rope-seed1": Family(_llama_like("llama"), seed=1, is_extended=True),
    "rope-wide": Family(_llama_like("llama", hidden=192, layers=2), is_extended=True),
    "rope-deep": Family(_llama_like("llama", hidden=96, layers=8)),
    "rope-partial": Family(
        {
            "model_type": "gpt_neox",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "rotary_pct": 0.25,
            "max_position_embeddings": TRAIN_LENGTH,
            **VOCABULARY,
            **NO_TOKENS,
        }
    ),
    "rope-qk-norm": Family(_llama_like("qwen3", head_dim=32)),
    "rope-window": Family(_llama_like("mistral", sliding_window=64)),
    "alibi": Family(_BLOOM),
    "alibi-seed1": Family(_BLOOM, seed=1),
    "none": Family(_NO_POSITIONS),
    "none-seed1": Family(_NO_POSITIONS, seed=1),
    "learned": Family(
        {
            "model_type": "gpt2",
            "n_embd": 128,
            "n_layer": 4,
            "n_head": 4,
            "n_positions": POSITIONS,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            **VOCABULARY,
            **NO_TOKENS,
        }
    ),
}

# Jeffreys' divergence is a small part of sce, so that more weight is tried.
REGULARIZED = [("sce", alpha) for alpha in (0.1, 0.3, 0.5)] + [("jeffreys", alpha) for alpha in (0.1, 0.3, 0.5, 1, 3)]
SAVED_AT = {("sce", 0.0): (50, 100), ("sce", 0.3): (50, 100)}  # these runs are measured on their way, too
EXTENSIONS = ("linear", "yarn", "clex", "eabf")


@dataclass(frozen=True)
class Scale:
    """How much is trained and scored. The default takes some three hours of one core; tests take less."""

    base_steps: int = 1200
    steps: int = 200
    base_batch: int = 8
    batch: int = 4
    num_docs: int = 8
    lengths: tuple[int, ...] = LENGTHS


def training_plan(work: Path, family: str, scale: Scale) -> list[TrainConfig]:
    """The base of a family, then every run that starts from it."""
    folder = work / "checkpoints"
    base = preset(
        "tiny",
        output=str(folder / f"{family}-base"),
        model_config=str(work / "configs" / f"{family}.json"),
        seed=FAMILIES[family].seed,
        alpha=0.0,
        windows=1,
        steps=scale.base_steps,
        global_batch_size=scale.base_batch,
        batch_size=scale.base_batch,
    )
    runs: list[tuple[str, dict[str, Any]]] = []
    for divergence, alpha in [("sce", 0.0), *REGULARIZED]:
        name = f"{divergence}{alpha:g}" if alpha else "plain"
        runs.append((name, {"divergence": divergence, "alpha": alpha}))
    if FAMILIES[family].is_extended:
        for extension in EXTENSIONS:
            for alpha in (0.0, 0.1):
                runs.append((f"{extension}-a{alpha:g}", {"alpha": alpha, "extension": extension, "factor": FACTOR}))
    plan = [base]
    for name, settings in runs:
        key = (settings.get("divergence"), settings["alpha"])
        saved = tuple(step * scale.steps // 200 for step in SAVED_AT.get(key, ()))
        plan.append(
            preset(
                "tiny",
                output=str(folder / f"{family}-{name}"),
                base=base.output,
                steps=scale.steps,
                global_batch_size=scale.batch,
                batch_size=scale.batch,
                learning_rate=1e-3,
                seed=100,  # the same sequences and shifts in every run
                save_at=saved,
                **settings,
            )
        )
    return plan


def write_config(work: Path, family: str) -> None:
    """The base's config.json, unless it is there."""
    path = work / "configs" / f"{family}.json"
    text = json.dumps(FAMILIES[family].config, indent=2) + "\n"
    if not path.is_file() or path.read_text("utf-8") != text:
        write_atomically(path, text)


def manifest(work: Path, families: list[str], scale: Scale) -> str:
    """What `longshort sweep` reads: every checkpoint of these families."""
    lines = [
        "# Written by scripts/study.py.",
        "description: Twelve families of tiny models over bytes, plain and regularized; see README.md beside it.",
        "defaults:",
        "  corpus: builtin",
        f"  lengths: {list(scale.lengths)}",
        f"  train_length: {TRAIN_LENGTH}",
        f"  num_docs: {scale.num_docs}",
        "  dtype: float32",
        "  batch_size: auto",
        "  resources: {cpus: 1}",  # so that as many run at once as there are cores
        "checkpoints:",
    ]
    for family in families:
        for config in training_plan(work, family, scale):
            # CLEX and EABF bring their code, which this study itself has written.
            code = ", trust_remote_code: true" if config.extension in ("clex", "eabf") else ""
            for step in (*config.save_at, None):
                folder = config.output if step is None else f"{config.output}-step{step}"
                lines.append(f"  - {{pretrained: {folder}, family: {family}{code}}}")
    return "\n".join(lines) + "\n"
