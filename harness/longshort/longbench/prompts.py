"""The official prompts: lm-eval's templates, white space repaired, and truncation in the middle to the window."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from longshort.errors import UserError
from longshort.longbench.scores import DATASETS

logger = logging.getLogger(__name__)


@cache
def template(dataset: str) -> str:
    """Return the official prompt with `{context}` and `{input}`, from the installed lm-eval.

    Raises:
        UserError: lm-eval's text has changed and is no longer the official one ("dependency").
    """
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    file = Path(lm_eval.__file__).parent / "tasks" / "longbench" / f"{dataset}_e.yaml"
    text = str(load_yaml(file, resolve_func=False)["doc_to_text"])
    text = text.replace("{{context}}", "{context}").replace("{{question}}", "{input}")
    if dataset in ("triviaqa", "samsum"):
        text = text.replace("{context}\n{input}", "{context}\n\n{input}")
    elif dataset in ("passage_count", "passage_retrieval_en"):
        text = text.rstrip() + " "
    elif dataset in ("lcc", "repobench-p"):
        text = text.rstrip("\n") + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    official = DATASETS[dataset].template
    if digest != official:
        raise UserError(
            f"the prompt of LongBench-E '{dataset}' in the installed lm-eval is not the official one "
            f"({digest}, not {official}). Install a version with the official prompt, as lm-eval 0.4.13.",
            "dependency",
        )
    return text


def prompt(dataset: str, row: dict[str, Any]) -> str:
    """Return the prompt of one row, not truncated."""
    return re.sub(r"\{(context|input)\}", lambda match: str(row[match[1]]), template(dataset))


def prompt_limit(window: int, max_new_tokens: int) -> int:
    """Return the maximum number of tokens of a prompt.

    The official values are 3500, 7500, 15500, 31500 for windows of 4k, 8k, 16k, 32k: 500 below the window with k
    taken as a thousand. Below 1k tokens, where that leaves nothing, it is the window minus the answer.

    Args:
        window: context length of the model, in tokens.
        max_new_tokens: length of the answer, in tokens.

    Raises:
        UserError: the window has no room for the answer ("setting").
    """
    limit = window // 1024 * 1000 - 500
    if limit <= 0:
        limit = window - max_new_tokens
    if limit < 2 or limit + max_new_tokens > window:
        raise UserError(
            f"max_length={window} leaves no room for an answer of {max_new_tokens} tokens. Raise it "
            "(--model-args max_length=TOKENS), or omit the datasets with long answers.",
            "setting",
        )
    return limit


def truncate_middle(text: str, tokenizer: Any, limit: int) -> tuple[str, bool]:
    """Keep int(limit / 2) tokens at each end of a text of more than `limit` tokens, as the official script does.

    Special tokens that the tokenizer adds are counted, and skipped in decoding.

    Returns:
        The text, and whether it was truncated.
    """
    tokens = tokenizer(text, truncation=False, verbose=False)["input_ids"]
    if len(tokens) <= limit:
        return text, False
    half = int(limit / 2)
    ends = (tokens[:half], tokens[-half:])
    return "".join(tokenizer.decode(end, skip_special_tokens=True) for end in ends), True


def tokenizer_and_window(model: Mapping[str, Any]) -> tuple[Any, int | None]:
    """Return tokenizer and window of the model by the run's arguments; None for both, and a warning, if unknown."""
    hub = {"revision": model.get("revision") or "main", "trust_remote_code": bool(model.get("trust_remote_code"))}
    window = model.get("max_length") or model.get("max_model_len")
    return _load(model.get("tokenizer"), model.get("pretrained"), window, **hub)


@lru_cache(maxsize=4)
def _load(tokenizer_name: Any, pretrained: Any, window: Any, **hub: Any) -> tuple[Any, int | None]:
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig, AutoTokenizer

    try:
        if isinstance(tokenizer_name, str):  # whose revision is not the model's
            tokenizer = AutoTokenizer.from_pretrained(tokenizer_name, trust_remote_code=hub["trust_remote_code"])
        elif isinstance(pretrained, str):
            tokenizer = AutoTokenizer.from_pretrained(pretrained, **hub)
        else:
            raise ValueError("the model arguments do not name a tokenizer")
        if not window:
            window = resolve_max_length(AutoConfig.from_pretrained(pretrained or tokenizer_name, **hub), tokenizer)
        return tokenizer, int(window)
    except (OSError, ValueError) as error:
        logger.warning(
            "LongBench-E prompts are not truncated, however long: %s. For the official truncation set "
            "--model_args tokenizer=…,max_length=….",
            " ".join(str(error).split())[:200],
        )
        return None, None
