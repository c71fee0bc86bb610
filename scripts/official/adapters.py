"""LoRA in LongQLoRA and LongLoRA: what is trained, its scale, and the factor of the positions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from longshort.training.extension import extend_context
from longshort.training.lora import EMBEDDINGS_AND_NORMS, add_lora, merged, trained_state
from official.models import random_tokens, tiny_config, tiny_llama
from official.source import Checkout
from official.table import Comparison, Difference, of_names, of_tensors

LENGTH = 64
LORA = {"rank": 64, "alpha": 16.0, "dropout": 0.05}  # LongQLoRA's

FINDS = "The official code finds its layers by the class of a 4-bit layer (bitsandbytes), here replaced by `nn.Linear`."
ALL_LINEAR = (
    "By default ours also puts adapters on the linear layers of the MLP, as LongQLoRA does; `--lora-targets "
    "q_proj,k_proj,v_proj,o_proj` is LongLoRA's choice."
)


def comparisons() -> list[Comparison]:
    """The rows."""
    model = "tiny Llama, rank 64, α 16"
    plus = "tiny Llama, `train` with its defaults; ours with `--train-embeddings-and-norms`"
    longlora = [
        Comparison("longlora", quantity, plus, "longlora", "fine-tune.py", measure, why)
        for quantity, measure, why in (
            ("modules with adapters", _longlora(_adapted), ALL_LINEAR),
            ("parameters trained in full", _longlora(_in_full), ""),
        )
    ]
    return longlora + [
        Comparison("longqlora", quantity, compared, "longqlora", "train.py", measure, why)
        for quantity, compared, measure, why in (
            ("modules with adapters", f"{model}; `insert_adapter`", _longqlora(_adapted), FINDS),
            ("trainable parameters", f"{model}; `insert_adapter` as published", _longqlora(_trainable), ""),
            ("logits with adapters", f"{model}, random adapters; official unmerged, ours merged", _adapted_logits, ""),
            ("factor of the positions", "`load_model_and_tokenizer` for 5,000 to 32,768 tokens", _factors, ""),
        )
    ]


def _adapted(model: nn.Module) -> set[str]:
    names = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name.removeprefix("base_model.model.model.") for name in names}


def _trainable(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def _in_full(model: nn.Module) -> set[str]:
    return {name for name in _trainable(model) if ".lora_" not in name}


def _longqlora(names_of: Callable[[nn.Module], set[str]]) -> Callable[[Checkout], Difference]:
    return lambda checkout: of_names(
        names_of(_official_longqlora(checkout)), names_of(add_lora(tiny_llama(LENGTH), **LORA))
    )


def _longlora(names_of: Callable[[nn.Module], set[str]]) -> Callable[[Checkout], Difference]:
    def measure(checkout: Checkout) -> Difference:
        ours = add_lora(tiny_llama(LENGTH), 8, 16.0, 0.0, EMBEDDINGS_AND_NORMS)
        return of_names(names_of(_official_longlora(checkout)), names_of(ours))

    return measure


class _Reached(Exception):
    """Carries what official code has made by the place where it is stopped."""


class _Transformers:
    """transformers with other loaders, for functions of a `Checkout`."""

    def __init__(self, **replaced: Any) -> None:
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(transformers, name)


def _official_longlora(checkout: Checkout) -> Any:
    """The tiny Llama as LongLoRA's `train` hands it to the Trainer."""

    def trainer(*_: Any, model: nn.Module, **__: Any) -> None:
        raise _Reached(model)

    def loader(value: Any) -> SimpleNamespace:
        return SimpleNamespace(from_pretrained=lambda *_, **__: value)

    data = {"train": None}
    names = checkout.definitions(
        "fine-tune.py",
        transformers=_Transformers(
            AutoConfig=loader(tiny_config(LENGTH)),
            AutoModelForCausalLM=loader(tiny_llama(LENGTH)),
            AutoTokenizer=loader(SimpleNamespace(pad_token="", eos_token="", bos_token="", unk_token="")),
            HfArgumentParser=lambda _: SimpleNamespace(parse_args_into_dataclasses=lambda: arguments),
        ),
        Trainer=trainer,
        DataCollatorForLanguageModeling=lambda **_: None,
        load_dataset=lambda *_, **__: SimpleNamespace(map=lambda *_, **__: data),
        replace_llama_attn=lambda *_: None,
        smart_tokenizer_and_embedding_resize=lambda **_: None,
    )
    defaults = names["TrainingArguments"].__dataclass_fields__
    given = {name: defaults[name].default for name in ("low_rank_training", "trainable_params", "cache_dir")}
    training = SimpleNamespace(**given, use_flash_attn=True, use_full_attn=False, model_max_length=LENGTH)
    arguments = names["ModelArguments"](), training
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            names["train"]()
    except _Reached as reached:
        return reached.args[0]
    raise ValueError("LongLoRA's train made no Trainer")


def _official_longqlora(checkout: Checkout) -> Any:
    """The tiny Llama as `insert_adapter` returns it with the settings of llama2-7b-pretrain.yaml."""
    bnb = SimpleNamespace(nn=SimpleNamespace(Linear4bit=nn.Linear))
    names = checkout.definitions("train.py", bnb=bnb, logger=SimpleNamespace(info=lambda *_: None))
    settings = SimpleNamespace(
        target_modules=None,
        lora_rank=LORA["rank"],
        lora_alpha=LORA["alpha"],
        lora_dropout=LORA["dropout"],
        train_embedding=False,
        train_norm=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return names["insert_adapter"](settings, tiny_llama(LENGTH))


@torch.no_grad()
def _adapted_logits(checkout: Checkout) -> Difference:
    official = _official_longqlora(checkout).eval()
    generator = torch.Generator().manual_seed(4)
    for value in official.parameters():
        if value.requires_grad:
            value.normal_(std=0.05, generator=generator)
    ours = merged(tiny_llama(LENGTH), LORA["rank"], LORA["alpha"], trained_state(official))
    tokens = random_tokens(2, LENGTH)
    return of_tensors([(official(input_ids=tokens).logits, ours(input_ids=tokens).logits)])


def _factors(checkout: Checkout) -> Difference:
    def load(*_: Any, config: transformers.LlamaConfig, **__: Any) -> None:
        raise _Reached(config.rope_scaling["factor"])

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        names = checkout.definitions(
            "train.py",
            AutoConfig=SimpleNamespace(from_pretrained=lambda *_, **__: tiny_config(4096)),
            AutoModelForCausalLM=SimpleNamespace(from_pretrained=load),
            BitsAndBytesConfig=SimpleNamespace,
            replace_llama_attn=lambda *_: None,
            logger=SimpleNamespace(info=lambda *_: None),
        )
        for length in (5000, 8192, 8193, 12_288, 32_768):
            settings = SimpleNamespace(model_name_or_path="", model_max_length=length, use_flash_attn=False)
            config, _ = extend_context(tiny_config(4096), "longqlora", train_length=length)
            try:
                names["load_model_and_tokenizer"](settings, None)
            except _Reached as loaded:
                yield torch.tensor(loaded.args), torch.tensor([config.rope_parameters["factor"]])

    return of_tensors(pairs())
