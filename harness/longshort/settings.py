"""What a task is told through its YAML's metadata or lm-eval's ``--metadata``, checked and with defaults."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

from longshort.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT_TASKS = ("longshort_perplexity", "longshort_misalignment")
MIN_LENGTH = 8  # below, half a length and a BOS leave no position to compare


@dataclass(frozen=True)
class EvalSettings:
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


def settings_from(metadata: Mapping[str, Any]) -> EvalSettings:
    """Read the keys of `EvalSettings` from a task's metadata; lm-eval puts the model's arguments there as well.

    Raises:
        UserError: a value of the wrong type or out of range.
    """
    names = [f.name for f in fields(EvalSettings)]
    for key in metadata:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.85)
        if near and key not in names:
            logger.warning("metadata key '%s' is not known and has no effect; did you mean '%s'?", key, near[0])
    given = {key: metadata[key] for key in names if metadata.get(key) is not None}

    lengths = given.get("lengths", EvalSettings.lengths)
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
    settings = EvalSettings(**given)
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


ADDED = ("peft", "delta")  # weights that lm-eval puts on a checkpoint
SCORED = ("corpus", "lengths", "train_length", "num_docs", "tail_tokens", "seed", "longbench_dir")
METADATA = (*SCORED, "family", "params", "train_tokens")  # of the tasks


@dataclass(frozen=True)
class Resources:
    """What a worker needs.

    Attributes:
        gpus: None: one where there is one.
        cpus: cores, also its threads.
        memory: of main memory, in bytes.
    """

    gpus: int | None = None
    cpus: int = 2
    memory: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint to evaluate, with all its settings.

    Attributes:
        pretrained: name on the hub, or absolute path of a folder.
        model_args: further arguments of lm-eval's ``hf`` backend.
        timeout: hours for all its tasks.
        cpu_offload: the last resort where memory runs out.
        gated, license: for people.
        line: of its entry in the manifest.
        label: its name for people, where its own would be that of another.
    """

    pretrained: str
    tasks: tuple[str, ...] = DEFAULT_TASKS
    revision: str = "main"
    family: str | None = None
    params: int | None = None
    train_tokens: int | None = None
    train_length: int = EvalSettings.train_length
    model_args: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    trust_remote_code: bool = False
    corpus: str = EvalSettings.corpus
    lengths: tuple[int, ...] = EvalSettings.lengths
    num_docs: int = EvalSettings.num_docs
    tail_tokens: int | None = None
    seed: int = EvalSettings.seed
    longbench_dir: str | None = None
    limit: float | None = None
    batch_size: int | str = 1
    resources: Resources = field(default_factory=Resources)
    timeout: float | None = None
    cpu_offload: bool = False
    gated: bool = False
    license: str | None = None
    line: int = 0
    label: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.pretrained).is_absolute()

    @property
    def name(self) -> str:
        """For people."""
        return self.label or plain_name(self)

    def metadata(self) -> dict[str, Any]:
        """Settings of longshort's tasks that are given."""
        given = {name: getattr(self, name) for name in METADATA if getattr(self, name) is not None}
        return given | {"lengths": list(self.lengths)}


def plain_name(checkpoint: Checkpoint, short: Mapping[str, str] | None = None) -> str:
    """A hub name or a folder's last part, with adapters and the revision.

    Args:
        checkpoint: of a manifest.
        short: other names for some of the names and paths it is made of.
    """
    short = short or {}
    first, *added = loaded_from(checkpoint)
    name = short.get(first) or (PurePath(first).name if checkpoint.is_local else first)
    name += "".join(f"+{short.get(source) or PurePath(source).name}" for source in added)
    return name + ("" if checkpoint.revision == "main" else f"@{checkpoint.revision}")


def loaded_from(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The checkpoint and the weights that are put on it."""
    added = (checkpoint.model_args.get(name) for name in ADDED)
    return (checkpoint.pretrained, *(str(source) for source in added if source))
