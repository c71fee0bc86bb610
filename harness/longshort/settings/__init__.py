"""Every evaluation setting, defined once: type, default, bounds, help and role are in the annotation of its field.

From these definitions derive the options of ``longshort eval``, the fields that a manifest accepts, what the tasks
read from lm-eval's ``--metadata`` and record in results, and what decides whether a result can be reused. To add a
setting of the tasks, add a field to `EvalSettings`; one of how a checkpoint is loaded or run, to `Checkpoint`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import field, fields
from pathlib import Path, PurePath
from typing import Annotated, Any

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from longshort.errors import UserError
from longshort.settings.definition import CONFIG, Mark, Role, build, names_of
from longshort.settings.types import (
    BatchSize,
    Count,
    CountOrZero,
    Dtype,
    JsonObject,
    Lengths,
    Memory,
    Names,
    Positive,
    Switch,
    Text,
)

logger = logging.getLogger(__name__)

DEFAULT_TASKS = ("longshort_perplexity", "longshort_misalignment")
LONGPPL = "longshort_longppl"  # the task that needs key_spans
ADDED = ("peft", "delta")  # weights that lm-eval puts on a checkpoint
# What lm-eval and longshort's tasks record in a task's metadata.
RESERVED = ("version", "config_source", "scored")


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvalSettings:
    """Settings of the longshort tasks; ``configs[TASK].metadata`` in the results holds them."""

    corpus: Annotated[
        Text,
        "Corpus: pg19, builtin, a path or glob PATH[:COLUMN] of .txt, .json, .jsonl (also .gz, .zst) or .parquet "
        "files, or hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN].",
        Mark.CORPUS,
    ] = "pg19"
    lengths: Annotated[Lengths, "Context lengths in tokens."] = (2048, 4096, 8192, 16384, 32768)
    train_length: Annotated[Count, "Training context length in tokens.", Role.ABOUT] = 4096
    num_docs: Annotated[Count, "Number of documents to evaluate."] = 32
    tail_tokens: Annotated[
        Count | None, "Number of fixed targets, which are scored at every length. Default: half the smallest length."
    ] = None
    draws: Annotated[Count | None, "Number of shorter contexts sampled per document and length. Default: 1."] = None
    seed: Annotated[
        CountOrZero, "Seed for sampling the shorter context length, and the needles of longshort_retrieval."
    ] = 0
    needles: Annotated[
        Count | None,
        "Number of key-value sentences in each context of longshort_retrieval; one is asked for. Default: 8.",
    ] = None
    depths: Annotated[
        Count | None,
        "Number of depths at which longshort_retrieval hides the sentence that is asked for, in each document. "
        "Default: 5.",
    ] = None
    save_tokens: Annotated[
        Switch, "Also write the values of every scored token, as a Parquet file next to the results.", Role.RUN
    ] = False
    longbench_dir: Annotated[
        Text | None,
        "Folder or zip file with the official LongBench data, for longshort_longbench_e.",
        Role.SOURCE,
        Mark.PATH,
    ] = None
    key_spans: Annotated[
        Text | None,
        "Key tokens for longshort_longppl: a file of 'longshort key-spans', a file or folder in LongPPL's key_text "
        "format, or self: the model finds them itself, which is known to make the metric uninformative.",
        Role.SOURCE,
        Mark.CORPUS,
    ] = None
    family: Annotated[Text | None, "Family of the checkpoint, for the analysis.", Role.ABOUT] = None
    params: Annotated[
        Count | None, "Number of parameters of the checkpoint, for the analysis.", Role.ABOUT, Mark.MANIFEST_ONLY
    ] = None
    train_tokens: Annotated[
        Count | None, "Number of tokens the checkpoint was trained on.", Role.ABOUT, Mark.MANIFEST_ONLY
    ] = None

    @model_validator(mode="after")
    def _tail_fits(self) -> EvalSettings:
        if self.num_targets >= self.lengths[0]:
            raise UserError(
                f"tail_tokens={self.tail_tokens} must be below the smallest length, {self.lengths[0]}. Lower it, or "
                "raise the smallest length.",
                "setting",
                "tail_tokens",
            )
        return self

    @property
    def num_targets(self) -> int:
        """`tail_tokens` with its default filled in."""
        return self.lengths[0] // 2 if self.tail_tokens is None else self.tail_tokens

    @property
    def num_draws(self) -> int:
        """`draws` with its default filled in."""
        return self.draws or 1

    @property
    def num_needles(self) -> int:
        """`needles` with its default filled in."""
        return self.needles or 8

    @property
    def num_depths(self) -> int:
        """`depths` with its default filled in."""
        return self.depths or 5

    def to_metadata(self) -> dict[str, Any]:
        """The resolved settings as results record them, without those that have no value and switches that are off."""
        return _given(self, [f.name for f in fields(self)]) | {"tail_tokens": self.num_targets}


@dataclass(frozen=True, config=CONFIG)
class Resources:
    """What a worker needs."""

    gpus: Annotated[CountOrZero | None, "GPUs. Default: 1 if the node has any."] = None
    cpus: Annotated[Count, "CPU cores, and threads."] = 2
    memory: Annotated[Memory | None, "Main memory in bytes, or as 24GB."] = None


@dataclass(frozen=True, config=CONFIG)
class Checkpoint(EvalSettings):
    """One checkpoint to evaluate, with all its settings."""

    pretrained: Annotated[Text, "Name on the hub, or absolute path of a folder.", Role.SOURCE, Mark.MANIFEST_ONLY]
    tasks: Annotated[Names, "Names of lm-eval tasks, longshort's included, or globs.", Role.SOURCE] = DEFAULT_TASKS
    revision: Annotated[Text, "Branch, tag or commit on the hub.", Role.SOURCE] = "main"
    model_args: Annotated[
        Mapping[str, Any], "Further arguments of lm-eval's hf backend.", Role.SOURCE, Mark.MANIFEST_ONLY
    ] = field(default_factory=dict)
    task_args: Annotated[
        JsonObject | None,
        "Metadata of the tasks that are not longshort's, such as '{\"max_seq_lengths\": [4096, 8192]}' for RULER.",
    ] = None
    dtype: Annotated[Dtype, "Weight dtype (auto: as saved).", Role.SOURCE] = "auto"
    trust_remote_code: Annotated[Switch, "Run code that comes with the checkpoint.", Role.RUN] = False
    limit: Annotated[
        Positive | None, "Maximum number of documents to evaluate per task; below 1, the fraction of them."
    ] = None
    batch_size: Annotated[
        BatchSize | None,
        "Documents per forward pass, or auto. Default: auto for perplexity and misalignment, 1 for other tasks.",
        Role.RUN,
    ] = None
    resources: Annotated[Resources, "What a worker needs.", Role.RUN, Mark.MANIFEST_ONLY] = field(
        default_factory=Resources
    )
    timeout: Annotated[Positive | None, "Maximum hours for all its tasks.", Role.RUN, Mark.MANIFEST_ONLY] = None
    cpu_offload: Annotated[
        Switch, "Retry with weights in main memory if GPU memory does not suffice.", Role.RUN, Mark.MANIFEST_ONLY
    ] = False
    gated: Annotated[Switch, "Whether the hub requires access to be granted.", Role.RUN, Mark.MANIFEST_ONLY] = False
    license: Annotated[Text | None, "License, for readers of the manifest.", Role.RUN, Mark.MANIFEST_ONLY] = None
    line: Annotated[int, "Line of its entry in the manifest.", Role.INTERNAL, Mark.MANIFEST_ONLY] = 0
    label: Annotated[
        str | None, "Name, where another checkpoint would have the same.", Role.INTERNAL, Mark.MANIFEST_ONLY
    ] = None

    @model_validator(mode="after")
    def _task_args_are_of_other_tasks(self) -> Checkpoint:
        settings = [f.name for f in fields(self)]
        for name in self.task_args or ():
            if name in settings:
                problem = f"'{name}' in task_args is a setting of longshort. Give it as {name} itself"
            elif name in RESERVED:
                problem = f"'{name}' in task_args is what results record about a task, and cannot be set. Remove it"
            else:
                continue
            raise UserError(f"{problem}.", "setting", "task_args")
        return self

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.pretrained).is_absolute()

    @property
    def name(self) -> str:
        """A name to show."""
        return self.label or plain_name(self)

    @property
    def loading(self) -> dict[str, Any]:
        """The settings that are arguments of lm-eval's ``hf`` backend."""
        arguments = {"pretrained": self.pretrained, "revision": self.revision, "dtype": self.dtype}
        return arguments | ({"trust_remote_code": True} if self.trust_remote_code else {})

    def metadata(self) -> dict[str, Any]:
        """The given settings of the longshort tasks, for lm-eval's ``--metadata``."""
        return _given(self, [f.name for f in fields(self) if f.name not in Checkpoint.__annotations__])

    def values(self, role: Role) -> dict[str, Any]:
        """The settings of one role, as JSON has them."""
        return {name: _plain(getattr(self, name)) for name in names_of(type(self), role)}


def settings_from(metadata: Mapping[str, Any], settings_class: type[EvalSettings] = EvalSettings) -> EvalSettings:
    """Read the settings in a task's metadata, to which lm-eval adds the model's arguments.

    Raises:
        UserError: a value has the wrong type or is out of range. Its `field` is the name of the setting.
    """
    names = [f.name for f in fields(settings_class)]
    for key in metadata:
        near = difflib.get_close_matches(key, names, n=1, cutoff=0.85)
        if near and key not in names:
            logger.warning("metadata key '%s' is not known and has no effect; did you mean '%s'?", key, near[0])
    return build(settings_class, {key: metadata[key] for key in names if metadata.get(key) is not None})


def _given(settings: EvalSettings, names: list[str]) -> dict[str, Any]:
    values = {name: _plain(getattr(settings, name)) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def plain_name(checkpoint: Checkpoint, short: Mapping[str, str] | None = None) -> str:
    """A hub name or a folder's last part, with adapters and the revision.

    Args:
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
