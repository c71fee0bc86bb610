"""The folder of a run: finished under its own name, and in progress as ``OUTPUT.partial``, from which a run resumes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainingArguments

from longshort.errors import UserError
from longshort.results import read_json, write_atomically
from longshort.training.config import TrainConfig
from longshort.training.record import RECORD

SETTINGS = "settings.json"
# Settings that change neither the weights nor the evaluations: a run is the same with others of these.
REPORTING = ("output", "report_to", "push_to_hub", "push_public")
# Words by which the errors of safetensors and torch.save show that a file could not be written: these libraries
# raise RuntimeError and SafetensorError without a code.
FAILED_WRITES = ("I/O error", "PytorchStreamWriter", "iostream error", "unexpected pos")


def is_finished(output: Path, config: TrainConfig) -> bool:
    """Return whether `output` holds the finished run of these settings.

    Raises:
        UserError: it holds something else.
    """
    if not output.exists():
        return False
    with suppress(UserError):  # a folder of something else, or a damaged record
        if _is_same(read_json(output / RECORD).get("config"), config):
            return True
    raise UserError(
        f"{output} exists and is not a result of this run. Remove it, or choose another output.", "conflict", "output"
    )


def open_partial(partial: Path, config: TrainConfig, arguments: TrainingArguments) -> Path | None:
    """Make the folder of the work in progress; return the save from which the run resumes, if there is one.

    Raises:
        UserError: the folder holds a run of other settings, or cannot be written.
    """
    saves = sorted(filter(_is_whole, partial.glob("checkpoint-*")), key=lambda folder: int(folder.name[11:]))
    same = False
    with suppress(UserError):  # it is missing or damaged
        changeable = REPORTING if config.keep_best else (*REPORTING, "save_dtype")  # the best is written already
        same = _is_same(read_json(partial / SETTINGS), config, changeable)
    arguments.distributed_state.wait_for_everyone()  # all have read before the main process writes
    if saves and not same:
        raise UserError(
            f"{partial} holds an unfinished run with other settings. Remove it, or choose another output. "
            "With its own settings that run would resume.",
            "conflict",
            "output",
        )
    if arguments.should_save:
        try:
            if not saves:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            settings = {name: value for name, value in asdict(config).items() if name != "output"}
            write_atomically(partial / SETTINGS, json.dumps(settings, indent=2))
            _remove_incomplete_saves(partial)
        except OSError as error:
            raise UserError(
                f"{partial} cannot be written: {error.strerror or error}. Choose a folder that you can write to.",
                "unwritable",
                "output",
            ) from error
    arguments.distributed_state.wait_for_everyone()
    return saves[-1] if saves else None


@contextmanager
def writing(output: Path, partial: Path, *, is_main: bool) -> Iterator[None]:
    """Report a failed write, and leave of `partial` only what a run can resume from.

    Raises:
        UserError: a file could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if not (isinstance(error, OSError) or any(words in str(error) for words in FAILED_WRITES)):
            raise
        cause = getattr(error, "strerror", None) or "a file could not be written in full"
        raise UserError(
            f"{output} cannot be written: {cause}. Free some space or choose another output; the same command "
            "then resumes from the last step that was saved.",
            "unwritable",
            "output",
        ) from error
    finally:
        if is_main:
            _remove_incomplete_saves(partial)
            if not any(partial.glob("checkpoint-*")):  # nothing to resume from
                shutil.rmtree(partial, ignore_errors=True)


def _is_whole(save: Path) -> bool:
    """Whether a save was written to its end: the Trainer writes its state last."""
    try:
        read_json(save / "trainer_state.json")
    except UserError:
        return False
    return True


def _remove_incomplete_saves(partial: Path) -> None:
    for save in partial.glob("checkpoint-*"):
        if not _is_whole(save):
            shutil.rmtree(save)


def _is_same(recorded: Any, config: TrainConfig, changeable: Sequence[str] = REPORTING) -> bool:
    """Whether the recorded settings are those of this run; one that an older version did not have had its default."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))  # as JSON gives them back
    if not isinstance(recorded, dict) or not recorded.keys() <= settings.keys():
        return False
    if config.extension == "clex" and "betas" not in recorded:
        return False  # version 0.1 drew one t per step, and clipped all gradients by one norm
    defaults: dict[str, Any] = json.loads(json.dumps(asdict(TrainConfig(output="", base=""))))
    return all((defaults | recorded)[name] == value for name, value in settings.items() if name not in changeable)
