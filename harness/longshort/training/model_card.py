"""The model card of a checkpoint: how it came about, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

import longshort
from longshort.corpora import hub_dataset

PAPER = """@inproceedings{du2025longshort,
  title = {Long-Short Alignment for Effective Long-Context Modeling in {LLMs}},
  author = {Du, Tianqi and Huang, Haotian and Wang, Yifei and Wang, Yisen},
  booktitle = {International Conference on Machine Learning},
  year = {2025},
  url = {https://arxiv.org/abs/2506.11769}
}"""
METHODS = {
    "linear": "Position interpolation (Chen et al., 2023)",
    "dynamic": "Dynamic NTK-aware RoPE scaling",
    "yarn": "YaRN (Peng et al., 2024)",
    "longrope": "LongRoPE (Ding et al., 2024)",
    "llama3": "Llama 3's RoPE scaling",
    "clex": "CLEX (Chen et al., 2024)",
    "eabf": "Entropy-ABF (Zhang et al., 2024)",
    "longqlora": "LongQLoRA (Yang, 2023)",
}


def model_card(name: str, record: dict[str, Any], *, is_pushed: bool = True) -> str:
    """Return the README.md of a checkpoint, with the metadata of the Hugging Face Hub.

    Args:
        name: of the checkpoint, its title.
        record: what its ``longshort.json`` contains.
        is_pushed: whether it is this checkpoint that `push_to_hub` uploads, and not a snapshot.
    """
    settings, evaluation = record["config"], record["evaluation"]
    is_adapter = settings["keep_adapter"]
    start = f"the base `{record['base']}`" if settings["base"] else "a random initialization"
    kind = "A PEFT adapter" if is_adapter else "A causal language model"
    baseline = "" if record["alpha"] else "; with α = 0 this is training without the regularizer"
    versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    return f"""---
{_metadata(record, is_adapter)}
---

# {name}

{kind}, trained from {start} with longshort.
The loss is `L_train + α · L_misalign` with α = {record["alpha"]} (Du et al., ICML 2025){baseline}.

| | |
|---|---|
{_table(_provenance(record))}

All settings are in `longshort.json`; the losses of every step are in `training_log.csv`.

## How to load it

```python
{_loading(record, (is_pushed and settings["push_to_hub"]) or name, is_adapter)}
```

## Losses

Means over the last steps, in nats{", and the last evaluation on held-out text" if evaluation else ""}.

| | |
|---|---:|
{_table(_losses(record["final"], evaluation or {}))}

## Versions

{versions}

## Citation

```bibtex
{PAPER}
```
"""


def converted_card(name: str, how: str, *, needs_remote_code: bool = False) -> str:
    """Return the README.md of a checkpoint that was written from another one.

    Args:
        name: of the checkpoint, its title.
        how: one sentence: which checkpoint it was written from, and by which command.
        needs_remote_code: whether the checkpoint brings its own code.
    """
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["longshort", "long-context", "clex"]
    )
    return f"""---
{metadata.to_yaml()}
---

# {name}

{how}

| | |
|---|---|
| Context extension | {METHODS["clex"]} |
| Version | longshort {longshort.__version__} |

## How to load it

```python
{_loading({"needs_remote_code": needs_remote_code}, name, False)}
```
"""


def _metadata(record: dict[str, Any], is_adapter: bool) -> str:
    settings, extension = record["config"], record["extension"]
    dataset = hub_dataset(settings["corpus"], "train")
    own: dict[str, Any] = {}
    if settings["base"] is not None and not Path(settings["base"]).expanduser().exists():  # it is on the hub
        own = {"base_model": settings["base"], "base_model_relation": "adapter" if is_adapter else "finetune"}
    return ModelCardData(
        **own,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        datasets=[dataset] if dataset else None,
        tags=["longshort", "long-context", *([] if extension == "none" else [extension])],
    ).to_yaml()


def _provenance(record: dict[str, Any]) -> dict[str, Any]:
    settings, corpus, model = record["config"], record["corpus"], record["model"]
    method = METHODS.get(record["extension"], "none")
    lora = f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']}" if settings["lora_rank"] else "none"
    best = record["best"]
    return {
        "Base": _with(record["base"], settings["revision"], model["commit"]),
        "Parameters": f"{model['num_parameters']:,}",
        "Context extension": _with(method, record["factor"] and f"factor {record['factor']}"),
        "LoRA": lora,
        "Corpus": _with(corpus["spec"], corpus["split"], corpus["revision"]),
        "SHA-256 of the text read": f"{corpus['sha256']} ({corpus['documents']} documents)",
        "Training context length": record["train_length"],
        "Steps": f"{record['steps']}, each of {settings['global_batch_size']} sequences",
        **({"Chosen from": f"{settings['steps']} steps by the lowest {best['value']}"} if best else {}),
        "Tokens": f"{record['tokens_seen']:,}",
        "α, divergence": f"{record['alpha']}, {record['divergence']}",
        "Learning rate": f"{settings['learning_rate']}, {settings['scheduler']}, warmup {settings['warmup']}",
        "Optimizer": f"{settings['optim']}, weight decay {settings['weight_decay']}",
        "Precision": f"{settings['dtype']}, saved in {settings['save_dtype']}",
        "Seed": record["seed"],
    }


def _with(*parts: Any) -> str:
    """The first part, and those of the others that there are in parentheses."""
    first, *rest = [str(part) for part in parts if part]
    return f"{first} ({', '.join(rest)})" if rest else first


def _losses(final: dict[str, float], evaluation: dict[str, float]) -> dict[str, str]:
    held_out = {f"{name} (held-out)": value for name, value in evaluation.items() if name != "step"}
    return {name: f"{value:.4g}" for name, value in (final | held_out).items()}


def _table(rows: dict[str, Any]) -> str:
    # A pipe in a file's name would end the cell, and a line break the table.
    return "\n".join(f"| {key} | {' '.join(str(value).replace('|', ' ').split())} |" for key, value in rows.items())


def _loading(record: dict[str, Any], name: str, is_adapter: bool) -> str:
    trust = ", trust_remote_code=True" if record["needs_remote_code"] else ""
    if is_adapter:
        return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({record["base"]!r}{trust})
model = PeftModel.from_pretrained(base, {name!r})"""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({name!r}{trust})
tokenizer = AutoTokenizer.from_pretrained({name!r})"""
