"""Every evaluation setting, defined once: type, default, bounds, help and role are in the annotation of its field.

From these definitions derive the options of ``longshort eval``, the fields that a manifest accepts, what the tasks
read from lm-eval's ``--metadata`` and record in results, and what decides whether a result can be reused. To add a
setting of the tasks, add a field to `EvalSettings`; one of how a checkpoint is loaded or run, to `Checkpoint`.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import field, fields
from enum import Enum
from functools import cache
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from longshort.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT_TASKS = ("longshort_perplexity", "longshort_misalignment")
MIN_LENGTH = 8  # below, half a length and a BOS leave no position to compare
ADDED = ("peft", "delta")  # weights that lm-eval puts on a checkpoint
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SHOWN = 60  # characters of a wrong value in a message

CONFIG = ConfigDict(extra="forbid", defer_build=True)  # schemas are built on first use, not for --help

T = TypeVar("T")


class Role(Enum):
    """What a change of the setting means for results that have been measured. `NUMBERS` where none is given."""

    NUMBERS = "the numbers change: measure again"
    SOURCE = "other weights or data are read; the sweep records them by a hash of their content"
    ABOUT = "only describes the checkpoint, for the analysis: rewrite the results, measure nothing"
    RUN = "only how the evaluation runs: the results stay valid"
    INTERNAL = "set by the program, not by a user"


class Mark(Enum):
    """What else an annotation can say."""

    MANIFEST_ONLY = "`longshort eval` has no option for it, or one of another form"
    PATH = "a path; a relative one in a manifest starts from the manifest's folder"
    CORPUS = "a path or glob if it matches a file, else a name"


# ---- types of values


def _number(value: Any) -> int | float:
    """A finite number, which may be given as text; True is not one, 2.0 is 2."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError from error
    if not math.isfinite(number):
        raise ValueError
    if isinstance(value, int):
        return value
    return int(number) if number.is_integer() else number


def _whole(value: Any, least: int) -> int:
    """A whole number; pydantic itself takes True and refuses "7e9"."""
    try:
        number = _number(value)
    except ValueError:
        number = math.nan
    if not isinstance(number, int) or number < least:
        raise ValueError(f"is not a whole number of at least {least}")
    return number


def _positive(value: Any) -> int | float:
    try:
        number = _number(value)
    except ValueError:
        number = 0
    if number <= 0:
        raise ValueError("is not a number above 0")
    return number


def _split(value: Any) -> Any:
    """The parts of a text with commas, or of a single number."""
    if isinstance(value, int | float | str):
        return [part.strip() for part in str(value).split(",") if part.strip()]
    return value


def _ascending(lengths: tuple[int, ...]) -> tuple[int, ...]:
    if not lengths:
        raise ValueError("is empty. Give at least one length in tokens, as in lengths=[2048,4096]")
    return tuple(sorted(set(lengths)))


def _some(tasks: tuple[str, ...]) -> tuple[str, ...]:
    if not tasks:
        raise ValueError("names no task. Name at least one, or omit it to run the longshort tasks")
    return tasks


def _batch_size(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"auto(:[0-9]+)?", value):
        return value
    try:
        return _whole(value, 1)
    except ValueError as error:
        raise ValueError("is neither auto nor a whole number of at least 1") from error


def _memory(value: Any) -> int:
    match = re.fullmatch(r"([0-9.]+) *([KMGT]B)?", str(value).strip(), re.IGNORECASE)
    try:
        amount = int(float(match[1]) * UNITS.get((match[2] or "").upper(), 1)) if match else 0
    except (ValueError, OverflowError):
        amount = 0
    if amount < 1:
        raise ValueError("is not an amount of memory. Write it as 24GB, 500MB, or in bytes")
    return amount


Text = Annotated[str, BeforeValidator(str)]
Count = Annotated[int, BeforeValidator(lambda value: _whole(value, 1))]
CountOrZero = Annotated[int, BeforeValidator(lambda value: _whole(value, 0))]
Positive = Annotated[float, BeforeValidator(_positive), AfterValidator(_number)]  # 2.0 is recorded as 2
Switch = Annotated[bool, Field(strict=True)]
Length = Annotated[int, BeforeValidator(lambda value: _whole(value, MIN_LENGTH))]
Lengths = Annotated[tuple[Length, ...], BeforeValidator(_split), AfterValidator(_ascending)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_split), AfterValidator(_some)]
BatchSize = Annotated[int | str, BeforeValidator(_batch_size)]
Memory = Annotated[int, BeforeValidator(_memory)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


# ---- the settings


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class EvalSettings:
    """Settings of the longshort tasks; ``configs[TASK].metadata`` in the results holds them."""

    corpus: Annotated[
        Text,
        "Corpus: pg19, builtin, a path or glob of .txt, .jsonl, .jsonl.zst or .parquet files, "
        "or hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN].",
        Mark.CORPUS,
    ] = "pg19"
    lengths: Annotated[Lengths, "Context lengths in tokens."] = (2048, 4096, 8192, 16384, 32768)
    train_length: Annotated[Count, "Training context length in tokens.", Role.ABOUT] = 4096
    num_docs: Annotated[Count, "Number of documents to evaluate."] = 32
    tail_tokens: Annotated[
        Count | None, "Number of fixed targets, which are scored at every length. Default: half the smallest length."
    ] = None
    seed: Annotated[CountOrZero, "Seed for sampling the shorter context length."] = 0
    longbench_dir: Annotated[
        Text | None,
        "Folder or zip file with the official LongBench data, for longshort_longbench_e.",
        Role.SOURCE,
        Mark.PATH,
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
                f"tail_tokens={self.tail_tokens} must be below the smallest length, {self.lengths[0]}.",
                "setting",
                "tail_tokens",
            )
        return self

    @property
    def num_targets(self) -> int:
        """`tail_tokens` with its default filled in."""
        return self.lengths[0] // 2 if self.tail_tokens is None else self.tail_tokens

    def to_metadata(self) -> dict[str, Any]:
        """The resolved settings as results record them; a setting without a value is not among them."""
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
    tasks: Annotated[Names, "Names or globs of tasks, of longshort's or any of lm-eval's.", Role.SOURCE] = DEFAULT_TASKS
    revision: Annotated[Text, "Branch, tag or commit on the hub.", Role.SOURCE] = "main"
    model_args: Annotated[
        Mapping[str, Any], "Further arguments of lm-eval's hf backend.", Role.SOURCE, Mark.MANIFEST_ONLY
    ] = field(default_factory=dict)
    dtype: Annotated[Dtype, "Weight dtype (auto: as saved).", Role.SOURCE] = "auto"
    trust_remote_code: Annotated[Switch, "Run code that comes with the checkpoint.", Role.RUN] = False
    limit: Annotated[
        Positive | None, "Maximum number of documents to evaluate per task; below 1, the fraction of them."
    ] = None
    batch_size: Annotated[BatchSize, "Documents per forward pass, or auto.", Role.RUN] = 1
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

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return Path(self.pretrained).is_absolute()

    @property
    def name(self) -> str:
        """A name to show."""
        return self.label or plain_name(self)

    def metadata(self) -> dict[str, Any]:
        """The given settings of the longshort tasks, for lm-eval's ``--metadata``."""
        return _given(self, [f.name for f in fields(self) if f.name not in Checkpoint.__annotations__])

    def values(self, role: Role) -> dict[str, Any]:
        """The settings of one role, as JSON has them."""
        return {name: _plain(getattr(self, name)) for name in names_of(type(self), role)}


# ---- reading them


class Problem(NamedTuple):
    """What is wrong with a value.

    Attributes:
        location: of the value, as ("lengths", 1).
        value: as it was given.
        text: as "is not a whole number of at least 1", without a full stop.
    """

    location: tuple[int | str, ...]
    value: Any
    text: str


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


def build(settings_class: type[T], values: Mapping[str, Any]) -> T:
    """Make a settings object from values as a user gave them.

    Raises:
        UserError: a value is wrong. Its `field` is the name of the setting.
    """
    try:
        return settings_class(**values)
    except ValidationError as error:
        problem = problem_in(error)
        name = str(problem.location[0])
        shown = repr(problem.value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        raise UserError(f"{name}: {shown} {problem.text}.", "setting", name) from error


def adapter(settings_class: type, name: str) -> TypeAdapter[Any]:
    """What validates a single setting."""
    return _adapter(settings_class, name)


def problem_in(error: ValidationError) -> Problem:
    """The first of the problems that pydantic found."""
    details = error.errors(include_url=False)[0]
    context = details.get("ctx", {})
    text = {
        "literal_error": f"is not one of {context.get('expected')}",
        "bool_type": "is neither true nor false",
        "value_error": str(context.get("error")),
    }.get(details["type"], f"is not valid: {details['msg']}")
    return Problem(details["loc"], details["input"], text)


def names_of(settings_class: type, role: Role) -> list[str]:
    """The settings of one role."""
    return [name for name, notes in _notes(settings_class).items() if _role(notes) is role]


def marked(settings_class: type, mark: Mark) -> list[str]:
    """The settings with a mark."""
    return [name for name, notes in _notes(settings_class).items() if mark in notes]


@cache
def _adapter(settings_class: type, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(settings_class, include_extras=True)[name])


@cache
def _notes(settings_class: type) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(settings_class, include_extras=True)
    return {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(settings_class)}


def _role(notes: tuple[Any, ...]) -> Role:
    return next((note for note in notes if isinstance(note, Role)), Role.NUMBERS)


def _given(settings: EvalSettings, names: list[str]) -> dict[str, Any]:
    return {name: _plain(getattr(settings, name)) for name in names if getattr(settings, name) is not None}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# ---- names of checkpoints


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
