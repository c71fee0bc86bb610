"""What a task is told through its YAML's metadata or lm-eval's ``--metadata``, checked and with defaults."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from longshort.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT_TASKS = ("longshort_perplexity", "longshort_misalignment")
MIN_LENGTH = 8  # below, half a length and a BOS leave no position to compare


@dataclass(frozen=True)
class Settings:
    """Resolved task metadata; `RESULTS.configs[TASK].metadata` holds these keys.

    Attributes:
        corpus: see `longshort.corpora.open_corpus`.
        lengths: lengths scored, in tokens, ascending.
        train_length: the length the model was trained at, in tokens; recorded for the analysis.
        num_docs: documents scored.
        tail_tokens: targets of the fixed-target view; default half the smallest length.
        seed: of the draws of the second context length.
        family, params, train_tokens: about the checkpoint, for the analysis.
    """

    corpus: str = "pg19"
    lengths: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    train_length: int = 4096
    num_docs: int = 32
    tail_tokens: int = 1024
    seed: int = 0
    family: str | None = None
    params: int | None = None
    train_tokens: int | None = None

    def to_metadata(self) -> dict[str, Any]:
        """The settings as lm-eval's results keep them; keys that were not given are left out."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return given | {"lengths": list(self.lengths)}


def settings_from(metadata: Mapping[str, Any]) -> Settings:
    """Read the keys of `Settings` from a task's metadata; lm-eval puts the model's arguments there as well.

    Raises:
        UserError: a value of the wrong type or out of range.
    """
    names = [field.name for field in fields(Settings)]
    for key in metadata:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.85)
        if near and key not in names:
            logger.warning("metadata key '%s' is not known and has no effect; did you mean '%s'?", key, near[0])
    given = {key: metadata[key] for key in names if metadata.get(key) is not None}

    lengths = given.get("lengths", Settings.lengths)
    if isinstance(lengths, int | str | float):
        lengths = [part for part in str(lengths).split(",") if part.strip()]
    lengths = tuple(sorted({_whole("lengths", length, MIN_LENGTH) for length in lengths}))
    if not lengths:
        raise UserError("lengths is empty. Give at least one length in tokens, as in lengths=[2048,4096].")
    given["lengths"] = lengths
    given.setdefault("tail_tokens", lengths[0] // 2)
    minimum = {"train_length": 1, "num_docs": 1, "tail_tokens": 1, "seed": 0, "params": 1, "train_tokens": 1}
    for key, least in minimum.items():
        if key in given:
            given[key] = _whole(key, given[key], least)
    for key in ("corpus", "family"):
        if key in given:
            given[key] = str(given[key])
    settings = Settings(**given)
    if settings.tail_tokens >= lengths[0]:
        raise UserError(f"tail_tokens={settings.tail_tokens} must be below the smallest length, {lengths[0]}.")
    return settings


def _whole(name: str, value: Any, least: int) -> int:
    try:
        number = int(float(value))
        if number != float(value) or number < least or isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: {value!r} is not a whole number of at least {least}.") from error
    return number
