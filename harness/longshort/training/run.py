"""One training run, from its settings to a finished checkpoint folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import TrainingArguments
from transformers.utils import logging

from longshort.corpora import open_corpus
from longshort.errors import UserError
from longshort.training.base import Base, load_base, load_model
from longshort.training.checkpoint import RECORD, write_checkpoint
from longshort.training.config import TrainConfig
from longshort.training.estimate import LONG_RUN, estimate
from longshort.training.evaluation import evaluate, held_out, reachable
from longshort.training.extension.clex import clex_positions
from longshort.training.extension.options import OPTIONS
from longshort.training.lora import add_lora, can_quantize
from longshort.training.shifted_attention import check_groups, shifted_sparse_attention
from longshort.training.trainer import AfterStep, LongShortTrainer
from longshort.training.windows import WindowPairs, collate

SETTINGS = "settings.json"


def train(config: TrainConfig, *, progress: bool = True) -> Path:
    """Train one checkpoint and return its folder, `config.output`.

    The folder holds the model and tokenizer for any stock ``from_pretrained``, ``longshort.json`` (settings,
    corpus, tokens seen, final losses, versions), ``training_log.csv`` (one row per step), ``evaluation_log.csv``
    where there were evaluations, and a picture of both. Work in progress lies in ``OUTPUT.partial``; what is
    finished is renamed, so a folder of its name is always a finished run. Where the same run is there already,
    nothing is done; where it was killed, it goes on from its last save, to the same weights. Under ``accelerate
    launch`` the main process alone writes.

    Args:
        config: the settings.
        progress: show a bar.

    Raises:
        UserError: the folder holds something else or cannot be written; a base, tokenizer or corpus cannot be
            read, or does not fit; the loss is not finite.
    """
    config = config.resolved()
    output = Path(config.output).expanduser()
    if _is_finished(output, config):
        print(f"{output} already holds this run, finished: nothing to do.", file=sys.stderr)
        return output
    partial = output.with_name(output.name + ".partial")
    arguments = _training_arguments(config, partial, progress)
    say = _printer(arguments, progress)

    with _no_loading_bars():
        base = load_base(config)
    bos = base.bos_token_id
    dataset = WindowPairs(
        open_corpus(config.corpus, "train"),
        base.tokenizer,
        train_length=config.train_length,
        max_extra=config.largest_extra,
        windows=config.windows,
        steps=config.steps,
        sequences_per_step=config.global_batch_size,
        seed=config.seed,
        bos_token_id=bos,
        cross_documents=config.cross_documents,
        positions=_clex_positions(base, config),
    )
    dataset.check()
    groups = (config.extension_options or {}).get("groups", OPTIONS["longqlora"]["groups"])
    if config.extension == "longqlora":
        check_groups(config.train_length, groups)
    evaluation = _evaluation_tokens(config, base)
    quantize = config.quantization == "nf4" or (config.quantization == "auto" and config.extension == "longqlora")
    if quantize and not can_quantize():
        if config.quantization == "nf4":
            raise UserError("A 4-bit base needs CUDA and bitsandbytes (pip install 'longshort[qlora]').")
        say("no CUDA with bitsandbytes: LoRA on a base in full precision, not in 4 bits.")
        quantize = False
    with _no_loading_bars():
        model = load_model(config, base, quantize=quantize)
        num_parameters = model.num_parameters()
        eval_lengths = reachable(model, config.eval_lengths) if evaluation is not None else ()
        if config.gradient_checkpointing:  # a reentrant one loses the gradient of frozen or learned inputs
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        sparse = shifted_sparse_attention(model, groups) if config.extension == "longqlora" else nullcontext()
    if config.rank_of_adapters:
        torch.manual_seed(config.seed)
        model = add_lora(model, config.rank_of_adapters, config.lora_alpha, config.lora_dropout, base.trained_in_full)
    cost = estimate(config, model)
    if cost.flops >= LONG_RUN:
        say(str(cost))

    resume = _prepare(partial, config, arguments)
    try:
        trainer = LongShortTrainer(config, model=model, args=arguments, train_dataset=dataset, data_collator=collate)

        def after(step: int) -> None:
            if evaluation is not None and (step % config.eval_every == 0 or step == config.steps):
                special = int(bos is not None)
                values = evaluate(
                    trainer.evaluated_model, evaluation, eval_lengths, config.train_length, special, config.seed
                )
                trainer.log({f"eval_{name}": value for name, value in values.items()})
            if step in config.save_at:
                snapshot = output.with_name(f"{output.name}-step{step}")
                write_checkpoint(snapshot, partial / snapshot.name, config, base, trainer, dataset, num_parameters)

        trainer.add_callback(AfterStep(after))
        with sparse, _no_loading_bars():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        with _no_loading_bars():
            write_checkpoint(output, partial / "final", config, base, trainer, dataset, num_parameters)
        if arguments.should_save:
            shutil.rmtree(partial)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not _is_failed_write(error):
            raise
        cause = getattr(error, "strerror", None) or "a file could not be written in full"
        raise UserError(
            f"{output} cannot be written: {cause}. Free some space or name another output; the same command "
            "then goes on from the last step that was saved."
        ) from error
    finally:
        if arguments.should_save:
            _drop_cut_saves(partial)
            if not any(partial.glob("checkpoint-*")):  # nothing to go on from
                shutil.rmtree(partial, ignore_errors=True)
    return output


def _prepare(partial: Path, config: TrainConfig, arguments: TrainingArguments) -> Path | None:
    """Make the folder of the work in progress; return the save that the run goes on from, if there is one."""
    settings = json.dumps(_settings(config), indent=2)
    saves = sorted(filter(_is_whole, partial.glob("checkpoint-*")), key=lambda folder: int(folder.name[11:]))
    try:
        same = (partial / SETTINGS).read_text("utf-8") == settings
    except OSError:
        same = False
    arguments.distributed_state.wait_for_everyone()  # all have read before the main process writes
    if saves and not same:
        raise UserError(
            f"{partial} holds an unfinished run with other settings. Remove it, or name another output; with its "
            "own settings that run would go on."
        )
    if arguments.should_save:
        try:
            if not saves:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                (partial / SETTINGS).write_text(settings, "utf-8")
            _drop_cut_saves(partial)
        except OSError as error:
            raise UserError(
                f"{partial} cannot be written: {error.strerror or error}. Choose a folder you can write to."
            ) from error
    arguments.distributed_state.wait_for_everyone()
    return saves[-1] if saves else None


def _is_whole(save: Path) -> bool:
    """Whether a save was written to its end: the Trainer writes its state last."""
    try:
        json.loads((save / "trainer_state.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _drop_cut_saves(partial: Path) -> None:
    for save in partial.glob("checkpoint-*"):
        if not _is_whole(save):
            shutil.rmtree(save)


def _clex_positions(base: Base, config: TrainConfig) -> Any:
    """What draws t and the stretched positions of a step, for CLEX; None for every other model."""
    if not base.is_clex:
        return None
    rope = base.config.rope_parameters
    original, max_t = rope["original_max_position_embeddings"], int(rope["max_t"])

    def draw(generator: np.random.Generator) -> tuple[int, Tensor]:
        t = int(generator.integers(1, max_t, endpoint=True))
        return t, clex_positions(config.train_length, original, t, generator)[None]

    return draw


def _evaluation_tokens(config: TrainConfig, base: Base) -> Tensor | None:
    if not config.eval_every:
        return None
    corpus = open_corpus(config.eval_corpus or config.corpus, "validation")
    if config.eval_corpus is None and corpus.split is None:
        raise UserError(f"corpus '{config.corpus}' has no validation split: name held-out text with --eval-corpus.")
    longest = max(*config.eval_lengths, config.train_length + 1)
    return held_out(corpus, base.tokenizer, config.eval_docs, longest, base.bos_token_id)


def _is_failed_write(error: Exception) -> bool:
    """Whether a file could not be written: safetensors and torch.save have errors of their own for it."""
    signs = ("I/O error", "PytorchStreamWriter", "iostream error", "unexpected pos")
    return isinstance(error, OSError) or any(sign in str(error) for sign in signs)


@contextmanager
def _no_loading_bars() -> Iterator[None]:
    """Leave the console to the training bar."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _printer(arguments: TrainingArguments, progress: bool) -> Any:
    def say(text: str) -> None:
        if progress and arguments.should_save:
            print(f"longshort: {text}", file=sys.stderr)

    return say


def _settings(config: TrainConfig) -> dict[str, Any]:
    """All settings but the folder's name, which may change; as JSON gives them back."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    del settings["output"]
    return settings


def _is_finished(output: Path, config: TrainConfig) -> bool:
    if not output.exists():
        return False
    try:
        if json.loads((output / RECORD).read_text("utf-8"))["config"] == _settings(config):
            return True
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # a folder of something else, or a damaged record
    raise UserError(f"{output} exists and is not a result of this run. Remove it, or name another.")


def _training_arguments(config: TrainConfig, folder: Path, progress: bool) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.scheduler,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.dtype == "bfloat16",
        use_cpu=not any(device.is_available() for device in (torch.cuda, torch.backends.mps, torch.xpu)),
        logging_steps=1,
        save_strategy="steps" if config.resume_every else "no",
        save_steps=config.resume_every or 500,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=not progress,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        accelerator_config={"dispatch_batches": False, "split_batches": False},  # each process takes its share
    )
    at_once = arguments.train_batch_size * arguments.world_size
    if config.global_batch_size % at_once:
        raise UserError(
            f"global_batch_size {config.global_batch_size} is no multiple of the {at_once} sequences that "
            f"{arguments.world_size} devices take at once. Change it, or --batch-size."
        )
    arguments.gradient_accumulation_steps = config.global_batch_size // at_once
    return arguments
