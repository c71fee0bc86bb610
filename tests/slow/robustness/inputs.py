"""Good inputs, made once, that cases copy and spoil: checkpoints, text, results, predictions, a finished sweep."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

SAMPLES = "samples_longshort-longbench-e-qasper_2025-01-01T00-00-00.000000.jsonl"
MANIFEST = """defaults:
  corpus: text.jsonl
  lengths: [16, 32]
  num_docs: 2
  train_length: 32
  dtype: float32
  resources: {gpus: 0, cpus: 1}
checkpoints:
  - pretrained: ./model
"""


def build(folder: Path) -> None:
    """Make all of them below a folder."""
    from transformers import AutoModelForCausalLM

    from longshort.testing import save_checkpoint, save_corpus
    from tests.analysis.results_folder import save_folder
    from tests.longbench.rows import write_rows
    from tests.token_files import rows_of_document, write_token_file
    from tests.training.extension.official_checkpoint import save_official

    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    save_official(folder / "official-clex", model)
    save_corpus(folder / "text.jsonl", num_docs=4, num_bytes=1500)
    save_corpus(folder / "large.jsonl", num_docs=60, num_bytes=20_000)
    save_folder(folder / "results", families=4, members=2)
    texts = [f" word{index}" for index in range(32)]
    write_token_file(folder / "tokens.parquet", [row for i in range(2) for row in rows_of_document(i, texts, (16, 32))])
    write_rows(folder / "longbench", count=1, words=40)
    with zipfile.ZipFile(folder / "longbench.zip", "w") as archive:
        for file in sorted((folder / "longbench").iterdir()):
            archive.write(file, f"data/{file.name}")
    save_predictions(folder)
    (folder / "manifest.yaml").write_text(MANIFEST)
    _models(folder)
    _adapters(folder)
    chosen = ("--corpus", "text.jsonl", "--lengths", "16,32", "--num-docs", "2", "--short", "8", "--stride", "8")
    _run(folder, "key-spans", "model", *chosen, "--min-gain", "0", "--max-loss", "20", "-o", "spans.jsonl")
    _run(folder, "sweep", "manifest.yaml", "-o", "sweep")
    options = ("--base", "model", "--corpus", "text.jsonl", "--train-length", "16", "--global-batch-size", "2")
    _run(folder, "train", *options, "--steps", "1", "-o", "trained")
    _run(folder, "train", *options, "--steps", "1", "--extension", "clex", "--factor", "2", "-o", "clex")


def _run(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "longshort", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr[-500:]}")


def save_predictions(folder: Path) -> None:
    """Official files of two datasets, and lm-eval's samples of one."""
    row: dict[str, Any] = {"pred": "an answer", "answers": ["the answer"], "all_classes": None, "length": 1200}
    (folder / "predictions").mkdir()
    (folder / "samples").mkdir()
    for dataset in ("qasper", "hotpotqa"):
        (folder / "predictions" / f"{dataset}.jsonl").write_text((json.dumps(row) + "\n") * 3)
    sample = {"doc": row, "filtered_resps": ["an answer"]}
    (folder / "samples" / SAMPLES).write_text((json.dumps(sample) + "\n") * 3)


def _models(folder: Path) -> None:
    """Checkpoints of other kinds, saved by transformers."""
    import torch
    import transformers

    from longshort.testing import save_checkpoint, tiny_tokenizer

    small: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=263, intermediate_size=16, **small)
    t5 = transformers.T5Config(vocab_size=263, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    xlnet = transformers.XLNetConfig(vocab_size=263, d_model=16, d_inner=16, n_layer=1, n_head=2)
    ctrl = transformers.CTRLConfig(vocab_size=263, n_positions=8, n_embd=16, dff=16, n_layer=1, n_head=2)
    torch.manual_seed(0)
    models = {
        "xlnet": transformers.XLNetLMHeadModel(xlnet),
        "ctrl": transformers.CTRLLMHeadModel(ctrl),
        "encoder": transformers.BertModel(bert),
        "masked": transformers.BertForMaskedLM(bert),
        "encoder-decoder": transformers.T5ForConditionalGeneration(t5),
    }
    for name, model in models.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6 if parameter.ndim == 2 else 1)  # contexts shall make a difference
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    save_checkpoint(folder / "small-vocabulary", vocab_size=61)
    save_checkpoint(folder / "short", max_position_embeddings=8, model_type="gpt2", n_positions=8)
    save_checkpoint(folder / "nan")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "nan")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(folder / "nan")


def _adapters(folder: Path) -> None:
    """Adapters of the model: of its weights, and of its input."""
    import peft
    import transformers

    configs = {
        "adapter": peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2, init_lora_weights=False),
        "virtual-tokens": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    }
    for name, config in configs.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
        peft.get_peft_model(model, config).save_pretrained(folder / name)
