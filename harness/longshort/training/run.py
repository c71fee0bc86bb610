"""One training run, from its settings to a finished checkpoint folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from longshort.corpora import open_corpus
from longshort.errors import UserError
from longshort.scoring.forward import without_wrappers
from longshort.training.arguments import training_arguments
from longshort.training.attention import attention_implementation
from longshort.training.base import Base, checkpoint_gradients, load_base, load_model
from longshort.training.best import best_folder, best_step, remove_surpassed
from longshort.training.checkpoint import describe, write_checkpoint
from longshort.training.compiling import compile_layers
from longshort.training.config import TERMS, TrainConfig
from longshort.training.evaluation import evaluate, held_out, reachable
from longshort.training.extension.clex import clex_positions
from longshort.training.extension.options import OPTIONS
from longshort.training.fit import check_devices
from longshort.training.frequencies import check_wrapper
from longshort.training.hub import push, writable_repository
from longshort.training.lora import add_lora, can_quantize, lora_modules
from longshort.training.partial import is_finished, open_partial, writing
from longshort.training.precision import check_loss
from longshort.training.shifted_attention import check_groups, shifted_sparse_attention
from longshort.training.trainer import AfterStep, LongShortTrainer
from longshort.training.windows import WindowPairs, collate

LOGS = "runs"  # where the Trainer's TensorBoard logger writes, below the folder of the work in progress


@dataclass(frozen=True)
class Run:
    """A run that is ready to train."""

    config: TrainConfig  # resolved
    output: Path  # folder of the finished checkpoint
    partial: Path  # folder of the work in progress
    arguments: TrainingArguments
    base: Base
    dataset: WindowPairs
    model: nn.Module  # with its adapters
    num_parameters: int  # without adapters
    attention: AbstractContextManager[None]  # in which the model trains
    eval_tokens: Tensor | None  # held-out documents, if there are evaluations  # [D, N]
    eval_lengths: tuple[int, ...]  # context lengths to evaluate


def train(config: TrainConfig, *, progress: bool = True, force: bool = False) -> Path:
    """Train one checkpoint and return its folder, `config.output`.

    The folder holds the model and tokenizer for transformers' ``from_pretrained``, ``longshort.json`` (settings,
    corpus, tokens seen, final losses, versions), ``training_log.csv`` (one row per step), ``evaluation_log.csv``
    if there were evaluations, and a figure of both. Work in progress lies in ``OUTPUT.partial`` and is renamed when
    finished, so a folder named OUTPUT is always a finished run. If the same run is finished already, nothing is
    done; if it was killed, it resumes from its last save and reaches the same weights. Under ``accelerate launch``
    only the main process writes.

    Args:
        config: the settings.
        progress: show a progress bar.
        force: train also where memory or disk do not suffice by the estimate.

    Raises:
        UserError: the folder holds something else or cannot be written; a base, tokenizer or corpus cannot be
            read, or does not fit; the run does not fit the devices present; the loss is not finite.
    """
    config = config.resolved()
    output = Path(config.output).expanduser()
    is_main = os.environ.get("RANK", "0") == "0"
    if is_finished(output, config):
        print(f"{output} already holds this finished run; nothing to do.", file=sys.stderr)
    else:
        run = prepare(config, output, progress=progress, force=force)
        resume_from = open_partial(run.partial, config, run.arguments)
        with writing(output, run.partial, is_main=run.arguments.should_save):
            trainer = fit(run, resume_from)
            finish(run, trainer)
    if config.push_to_hub is not None and is_main:
        print(f"Uploaded to {push(output, config.push_to_hub, public=config.push_public)}", file=sys.stderr)
    return output


def prepare(config: TrainConfig, output: Path, *, progress: bool, force: bool = False) -> Run:
    """Load and check everything that a run needs, without writing anything; `progress` also shows messages.

    Raises:
        UserError: a base, tokenizer or corpus cannot be read, or does not fit; the run does not fit the devices.
    """
    partial = output.with_name(output.name + ".partial")
    arguments = training_arguments(config, partial, progress)
    check_loss(config, arguments)
    shows_messages = progress and arguments.should_save
    with _no_loading_bars():
        base = load_base(config)
    if base.is_clex:
        check_wrapper(arguments)
    if config.keep_adapter and base.trained_in_full:
        raise UserError(
            f"A '{base.config.model_type}' base learns its frequencies in full, which an adapter does not contain: "
            "loaded onto the base, the adapter would give wrong numbers. Omit --keep-adapter.",
            "unsupported",
            "keep_adapter",
        )
    dataset = _window_pairs(config, base)
    is_sparse = config.extension == "longqlora"
    groups = (config.extension_options or {}).get("groups", OPTIONS["longqlora"]["groups"])
    if is_sparse:
        check_groups(config.train_length, groups)
    eval_tokens = _evaluation_tokens(config, base)
    quantize = _quantizes(config, shows_messages)
    if arguments.should_save:  # the main process, for all
        check_devices(config, base, quantizes=quantize, shows_messages=shows_messages, force=force)
    if config.push_to_hub is not None and arguments.process_index == 0:  # the last check: it creates a repository
        config = replace(config, push_to_hub=writable_repository(config.push_to_hub, public=config.push_public))
    arguments.distributed_state.wait_for_everyone()  # no other has begun to load while memory was measured
    with _no_loading_bars():
        model = load_model(config, base, quantize=quantize)
        eval_lengths = reachable(model, config.eval_lengths) if eval_tokens is not None else ()
        _check_best(config, eval_lengths)
        if config.gradient_checkpointing:
            checkpoint_gradients(model)
    num_parameters = model.num_parameters()
    attention: AbstractContextManager[None] = nullcontext()
    if is_sparse:
        attention = shifted_sparse_attention(model, groups)
    elif config.attn_implementation is not None:
        attention = attention_implementation(model, config.attn_implementation)
    trained: Any = model
    if config.rank_of_adapters:
        torch.manual_seed(config.seed)
        rank, alpha, dropout = config.rank_of_adapters, config.lora_alpha, config.lora_dropout
        trained = add_lora(model, rank, alpha, dropout, base.trained_in_full, **lora_modules(config))
    return Run(
        config, output, partial, arguments, base, dataset, trained, num_parameters, attention, eval_tokens, eval_lengths
    )


def fit(run: Run, resume_from: Path | None) -> LongShortTrainer:
    """Train, with evaluations and snapshots on the way; return the trainer, which holds the trained model.

    Raises:
        UserError: the loss is not finite.
    """
    config = run.config
    trainer = LongShortTrainer(
        config, model=run.model, args=run.arguments, train_dataset=run.dataset, data_collator=collate
    )

    def after_step(step: int) -> None:
        if run.eval_tokens is not None and (step % config.eval_every == 0 or step == config.steps):
            special = int(run.base.bos_token_id is not None)
            values = evaluate(
                trainer.evaluated_model, run.eval_tokens, run.eval_lengths, config.train_length, special, config.seed
            )
            trainer.log({f"eval_{name}": value for name, value in values.items()})
            if step > 0 and config.best_value is not None:
                _keep_if_best(run, trainer, config.best_value)
        if step in config.save_at:
            snapshot = run.output.with_name(f"{run.output.name}-step{step}")
            write_checkpoint(snapshot, run.partial / snapshot.name, run.base, trainer, run.num_parameters)

    trainer.add_callback(AfterStep(after_step))
    if config.torch_compile:
        compile_layers(cast(PreTrainedModel, without_wrappers(run.model)))
    with run.attention, _no_loading_bars():
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    return trainer


def finish(run: Run, trainer: LongShortTrainer) -> None:
    """Write the finished checkpoint and remove the folder of the work in progress."""
    writes, logs = run.arguments.should_save, run.partial / LOGS
    with _no_loading_bars():
        if run.config.best_value is None:
            write_checkpoint(run.output, run.partial / "final", run.base, trainer, run.num_parameters)
        elif writes:
            step = best_step(trainer.evaluations, run.config.best_value)
            best = best_folder(run.partial, step)
            describe(best, run.base, trainer, run.num_parameters, step, run.output.name, is_best=True)
            best.rename(run.output)
    if writes:
        if logs.is_dir():
            logs.rename(run.output / LOGS)
        shutil.rmtree(run.partial)


def _keep_if_best(run: Run, trainer: LongShortTrainer, value: str) -> None:
    """Write a copy of the weights if no earlier evaluation was as good; all processes must call it."""
    step = trainer.state.global_step
    if best_step(trainer.evaluations, value) != step:
        return
    folder = best_folder(run.partial, step)
    write_checkpoint(folder, run.partial / "new-best", run.base, trainer, run.num_parameters)
    if run.arguments.should_save:
        saves = [int(save.name.rpartition("-")[2]) for save in run.partial.glob("checkpoint-*")]
        remove_surpassed(run.partial, step, max(saves, default=0))


def _window_pairs(config: TrainConfig, base: Base) -> WindowPairs:
    dataset = WindowPairs(
        open_corpus(config.corpus, "train"),
        base.tokenizer,
        train_length=config.train_length,
        max_extra=config.largest_extra,
        windows=config.windows,
        steps=config.steps,
        sequences_per_step=config.global_batch_size,
        seed=config.seed,
        bos_token_id=base.bos_token_id,
        cross_documents=config.cross_documents,
        num_embeddings=base.num_embeddings,
        positions=_clex_positions(base, config),
    )
    dataset.check()
    return dataset


def _clex_positions(base: Base, config: TrainConfig) -> Any:
    """A function that draws t and the stretched positions of a sequence, for CLEX; None for every other model."""
    if not base.is_clex:
        return None
    max_t = int(base.config.rope_parameters["max_t"])

    def draw(generator: np.random.Generator) -> tuple[int, Tensor]:
        t = int(generator.integers(1, max_t, endpoint=True))
        return t, clex_positions(config.train_length, t, generator)

    return draw


def _evaluation_tokens(config: TrainConfig, base: Base) -> Tensor | None:
    if not config.eval_every:
        return None
    corpus = open_corpus(config.eval_corpus or config.corpus, "validation")
    if config.eval_corpus is None and corpus.split is None:
        raise UserError(
            f"Corpus '{config.corpus}' has no validation split. Give held-out text with --eval-corpus.",
            "setting",
            "eval_corpus",
        )
    longest = max(*config.eval_lengths, config.train_length + 1)
    return held_out(corpus, base.tokenizer, config.eval_docs, longest, base.bos_token_id, base.num_embeddings)


def _check_best(config: TrainConfig, eval_lengths: tuple[int, ...]) -> None:
    """Refuse to keep the best by an evaluation that the model has no positions for."""
    if config.best_value not in (None, *TERMS, *(f"ppl@{length}" for length in eval_lengths)):
        raise UserError(
            f"keep_best is '{config.keep_best}', a length beyond the positions of the model. Choose a shorter one.",
            "length",
            "keep_best",
        )


def _quantizes(config: TrainConfig, shows_messages: bool) -> bool:
    """Whether the base is loaded in 4 bits."""
    if not config.asks_for_4_bits:
        return False
    if can_quantize():
        return True
    if config.quantization == "nf4":
        raise UserError(
            "A 4-bit base requires CUDA and bitsandbytes (pip install 'longshort[qlora]').",
            "dependency",
            "quantization",
        )
    if shows_messages:
        print(
            "longshort: CUDA with bitsandbytes is not available: LoRA uses a base in full precision, not in 4 bits.",
            file=sys.stderr,
        )
    return False


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
