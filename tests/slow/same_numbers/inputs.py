"""The inputs of both sides, made without longshort: checkpoints, a corpus, a manifest, LongBench-E data, the study."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
WORDS = ["the", "thin", "père", "日本", "and", "in", "a", "🙂", "theorem", "x²", "length", "of", "context"]
CLASSES = ["Abbreviation", "Entity", "Food", "Number of something"]
DATASETS = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
MANIFEST = """\
defaults: {corpus: builtin, lengths: [32, 64], train_length: 64, num_docs: 2, dtype: float32}
checkpoints:
  - {pretrained: checkpoints/plain, family: plain, train_tokens: 1000}
  - {pretrained: checkpoints/bos, family: bos}
  - {pretrained: checkpoints/damaged, family: bos}
"""


def make_inputs(folder: Path, study: Path) -> None:
    """Write all inputs; `study` is the sweep folder to correlate, which is copied.

    The folder gets its name last, so an interrupted run leaves no incomplete inputs under it.
    """
    unfinished = folder.with_name(folder.name + ".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    _make_checkpoints(unfinished / "checkpoints")
    (unfinished / "clex.json").write_text(json.dumps(LLAMA | {"vocab_size": 257, "tie_word_embeddings": True}))
    (unfinished / "manifest.yaml").write_text(MANIFEST)
    _make_corpus(unfinished / "corpus")
    _make_longbench(unfinished / "longbench")
    shutil.copytree(study, unfinished / "study")
    unfinished.rename(folder)


def _make_checkpoints(folder: Path) -> None:
    without_bos, with_bos = _tokenizer(bos=False), _tokenizer(bos=True)
    _save(_random_model(LLAMA, seed=0), without_bos, folder / "plain")
    _save(_random_model(LLAMA, seed=1), with_bos, folder / "bos")
    _save(_random_model(GPT2, seed=2), without_bos, folder / "learned-positions")
    _save(_random_model(LLAMA | {"rope_parameters": DYNAMIC_ROPE}, seed=3), with_bos, folder / "dynamic-rope")
    _save(_random_model(LLAMA, seed=4).to(torch.bfloat16), with_bos, folder / "saved-bfloat16")
    adapted = _with_random_adapter(_random_model(LLAMA, seed=1))  # the model of `bos`
    adapted.save_pretrained(folder / "adapter")
    _save(adapted.merge_and_unload(), with_bos, folder / "lora-merged")
    damaged = shutil.copytree(folder / "plain", folder / "damaged")
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _tokenizer(bos: bool) -> transformers.PreTrainedTokenizerFast:
    """256 byte tokens and a few merges; with `bos`, every encoded text starts with <s>."""
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a")]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = SPECIAL_TOKENS + alphabet + ["".join(pair) for pair in merges]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(vocabulary)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def _random_model(settings: dict[str, Any], seed: int) -> transformers.PreTrainedModel:
    """A random model whose larger weights make its predictions depend on the context."""
    settings = settings | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 263}
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


def _with_random_adapter(model: transformers.PreTrainedModel) -> Any:
    """A LoRA adapter with random weights; by default its second factor is zero, and it has no effect."""
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted


def _save(model: Any, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_corpus(folder: Path) -> None:
    """Documents of different lengths in two files, with characters of several bytes."""
    folder.mkdir()
    draw = random.Random(0)
    for name in ("first", "second"):
        texts = [" ".join(draw.choices(WORDS, k=200 + 40 * index)) for index in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")


def _make_longbench(folder: Path) -> None:
    """Official data and predictions for all datasets, two rows in each range of lengths."""
    draw = random.Random(1)
    for part in ("data", "predictions"):
        (folder / part).mkdir(parents=True)
    for dataset in DATASETS:
        rows = [_longbench_row(dataset, index, draw) for index in range(6)]
        predictions = [
            {"pred": _prediction(row, draw)} | {key: row[key] for key in ("answers", "all_classes", "length")}
            for row in rows
        ]
        for file, lines in (("data/{}_e.jsonl", rows), ("predictions/{}.jsonl", predictions)):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (folder / file.format(dataset)).write_text(text, "utf-8")


def _longbench_row(dataset: str, index: int, draw: random.Random) -> dict[str, Any]:
    answers = {
        "trec": [CLASSES[index % len(CLASSES)]],
        "passage_count": [str(index + 2)],
        "passage_retrieval_en": [f"Paragraph {index + 1}"],
    }.get(dataset, [" ".join(draw.choices(WORDS, k=8)), " ".join(draw.choices(WORDS, k=3))])
    return {
        "input": "" if dataset == "lcc" else f"question {index}?\n",
        "context": " ".join(draw.choices(WORDS, k=150)),
        "answers": answers,
        "length": (1000, 5000, 9000)[index % 3],
        "dataset": f"{dataset}_e",
        "language": "en",
        "all_classes": CLASSES if dataset == "trec" else None,
        "_id": f"{dataset}{index}",
    }


def _prediction(row: dict[str, Any], draw: random.Random) -> str:
    """A part of the answer within other words, so that most scores lie between 0 and 100."""
    words = row["answers"][0].split()
    kept = words[: draw.randint(1, len(words))]
    return " ".join(draw.choices(WORDS, k=draw.randint(0, 3)) + kept + draw.choices(WORDS, k=draw.randint(0, 2)))
