"""Evaluates one checkpoint through lm-eval, without its scan of all its own task files; same results JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.group import Group
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.loggers import EvaluationTracker
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import hash_string

from longshort.devices import require_device
from longshort.errors import UserError
from longshort.lmeval.adapters import attach_adapter
from longshort.lmeval.backend import automatic_batches
from longshort.lmeval.base import LongShortTask, is_missing_setting
from longshort.lmeval.compat import install, no_random_weights, quiet
from longshort.lmeval.delta import add_delta
from longshort.lmeval.longppl import LONGPPL
from longshort.lmeval.model_checks import loaded_as_trained
from longshort.lmeval.output import require_writable, write_results
from longshort.lmeval.requests import REQUEST
from longshort.lmeval.retrieval_requests import RETRIEVAL
from longshort.lmeval.task_folder import tasks_folder
from longshort.load_errors import load_error, sentencepiece_problem
from longshort.results.groups import leaves
from longshort.results.metrics import is_ours
from longshort.scoring.chunks import smaller_chunks
from longshort.settings import ADDED, DEFAULT_TASKS

logger = logging.getLogger(__name__)

OWN_PREFIX = "longshort_"  # of the names that a user is offered


@dataclass(frozen=True)
class Prepared:
    """Tasks that are read and checked, for one model after another."""

    manager: TaskManager
    specs: list[Any]  # what `simple_evaluate` takes: task and group objects, or the name of a tag
    problems: list[str] = field(default_factory=list)  # tasks that were skipped because their input cannot be used


def evaluate_checkpoint(
    model_args: Mapping[str, Any],
    *,
    tasks: Sequence[str] = DEFAULT_TASKS,
    metadata: Mapping[str, Any] | None = None,
    task_args: Mapping[str, Any] | None = None,
    output: Path | None = None,
    batch_size: int | str | None = None,
    device: str | None = None,
    limit: float | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Evaluate one checkpoint; return, and if `output` is given write, what ``lm_eval run`` would.

    Args:
        model_args: as lm-eval's ``--model_args`` for its ``hf`` backend; at least ``pretrained``.
        tasks: names or globs, of longshort's tasks or any other of lm-eval's.
        metadata: values of `longshort.settings.EvalSettings`.
        task_args: further metadata, of the tasks that are not longshort's.
        output: folder; the results file is ``<output>/<model name>/results_<time>.json``.
        batch_size: documents per forward pass, or "auto". By default "auto" for perplexity and misalignment, and 1 for
            other tasks, since lm-eval's "auto" tries batches of the model's maximum length.
        device: "cpu", "cuda:0", …; by default a GPU if one is available.
        limit: number of documents (or, below 1, share of them) per task.
        log_samples: also write each task's per-document values.

    Returns:
        lm-eval's results, with what `evaluate_loaded` adds; empty on other than the first process.

    Raises:
        UserError: an unknown task or corpus, a device that is not available, a checkpoint that cannot be loaded, a
            folder that cannot be written (checked before any work is done).
    """
    require_folders(model_args)
    if device:
        require_device(device)
    if output:
        require_writable(output)
        folder = output / _folder_name(model_args)
        if folder.exists():
            require_writable(folder)
    settings = dict(model_args) | dict(metadata or {})
    prepared = prepare_tasks(tasks, settings, task_args)  # before loading, which takes longer
    lm = load_checkpoint(model_args, batch_size=batch_size, device=device)
    results = evaluate_loaded(
        lm, model_args, prepared, batch_size=batch_size, device=device, limit=limit, log_samples=log_samples
    )
    if output and results:
        write_results(results, output)
    return results


def prepare_tasks(
    names: Sequence[str], metadata: Mapping[str, Any], task_args: Mapping[str, Any] | None = None
) -> Prepared:
    """Read and check tasks.

    Args:
        names: names or globs.
        metadata: settings of the tasks and, as in lm-eval, the model's arguments.
        task_args: further metadata, of the tasks that are not longshort's.

    Raises:
        UserError: an unknown task or corpus, a wrong setting, or one that is missing for a task that is named.
    """
    ours = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=dict(metadata))
    manager = ours
    if not all(ours.match_tasks([name]) for name in names):  # reading all of lm-eval's tasks takes seconds
        manager = TaskManager(include_path=str(tasks_folder()), metadata=dict(metadata) | dict(task_args or {}))
    matching = _matching(manager, names)
    built: dict[str, Any] = {}
    for entry in [(ours if name in ours.all_tasks else manager).load(name) for name in matching]:
        built |= entry["tasks"] | entry.get("groups", {})
    cannot_run = {name: task.cannot_run for name, task in built.items() if isinstance(task, LongShortTask)}
    skipped = {name: problem for name in matching if (problem := cannot_run.get(name))}
    for name, problem in skipped.items():
        if len(skipped) == len(matching) or (is_missing_setting(problem) and name in names):
            raise problem
        logger.warning("%s was skipped: %s", name, problem)
    kept = [built.get(name, name) for name in matching if name not in skipped]  # a tag has no object of its own
    unusable = [f"{name} was skipped" for name, problem in skipped.items() if not is_missing_setting(problem)]
    return Prepared(manager, kept, unusable)


def load_checkpoint(
    model_args: Mapping[str, Any], *, batch_size: int | str | None = None, device: str | None = None
) -> LM:
    """Load a checkpoint as lm-eval's ``hf`` backend does, but never with random weights in place of missing ones.

    Args:
        model_args, batch_size, device: as in `evaluate_checkpoint`.

    Raises:
        UserError: it cannot be loaded, or lacks weights; the kind says why.
    """
    if all(model_args.get(name) for name in ADDED):
        raise UserError("peft and delta cannot be used together. Give one of them.", "setting", "peft")
    others = {"batch_size": batch_size or 1, "max_batch_size": None, "device": device or _default_device()}
    own = {name: value for name, value in model_args.items() if name not in ADDED}
    install()  # also for tasks of lm-eval alone
    with quiet(), no_random_weights():
        try:
            lm: LM = get_model("hf").create_from_arg_obj(own, others)
        except UserError:
            raise
        except Exception as error:  # a damaged checkpoint raises whatever its reader does
            tokenizer = model_args.get("tokenizer")
            if tokenizer and sentencepiece_problem(tokenizer, error):
                raise load_error(tokenizer, error, "tokenizer") from error
            raise load_error(model_args["pretrained"], error) from error
        _add_weights(lm, model_args)
    loaded_as_trained.add(lm)
    return lm


def _add_weights(lm: Any, model_args: Mapping[str, Any]) -> None:
    """Put an adapter or differences on a loaded checkpoint, as lm-eval's model does itself."""
    checkpoint, revision = str(model_args["pretrained"]), lm.revision
    if model_args.get("peft"):
        lm.peft = str(model_args["peft"])
        lm._model = attach_adapter(lm.model, lm.peft, checkpoint, revision)
    elif model_args.get("delta"):
        lm.delta = str(model_args["delta"])
        options = {"revision": revision, "trust_remote_code": model_args.get("trust_remote_code", False)}
        add_delta(lm.model, lm.AUTO_MODEL_CLASS, lm.delta, checkpoint, **options)


def evaluate_loaded(
    lm: LM,
    model_args: Mapping[str, Any],
    prepared: Prepared,
    *,
    batch_size: int | str | None = None,
    device: str | None = None,
    limit: float | None = None,
    log_samples: bool = False,
    chunk_divisor: int = 1,
) -> dict[str, Any]:
    """Evaluate a loaded checkpoint; logits take 1 / `chunk_divisor` of their usual memory.

    Returns:
        What ``lm_eval run`` writes; with `log_samples` also the per-document values, as ``samples``; with the setting
        `save_tokens` the per-token values, a `TokenFile` as ``longshort_tokens``; and what the tasks report of their
        data, as ``problems``. Empty on other than the first process.
    """
    tracker = EvaluationTracker()
    with quiet(), smaller_chunks(chunk_divisor), nullcontext() if batch_size else automatic_batches():
        results: dict[str, Any] | None = simple_evaluate(
            model=lm,
            model_args=dict(model_args),
            tasks=prepared.specs,
            batch_size=batch_size or _default_batch_size(prepared),  # recorded; a loaded model has its own
            device=device or _default_device(),
            limit=limit,
            log_samples=log_samples,
            evaluation_tracker=tracker,
            task_manager=prepared.manager,
        )
    if results is None:
        return {}
    tracker.general_config_tracker.log_end_time()
    results["config"]["model"] = tracker.general_config_tracker.model_source = "hf"  # lm-eval sees an object
    hashes = {
        task: hash_string("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
        for task, rows in (results.get("samples") or {}).items()
    }
    return (
        results
        | {"task_hashes": hashes}
        | asdict(tracker.general_config_tracker)
        | {"problems": [*prepared.problems, *_problems_of_tasks(prepared.specs)]}
    )


def _default_batch_size(prepared: Prepared) -> int | str:
    own = (REQUEST, LONGPPL, RETRIEVAL)
    return "auto" if any(getattr(spec, "OUTPUT_TYPE", None) in own for spec in prepared.specs) else 1


def results_of(results: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the part of an evaluation's results that belongs to one task, in the same form.

    Of a group that is not longshort's, its tasks belong to it: RULER's has their scores at one length only.
    """
    tasks = [task] if is_ours(task) else [task, *leaves(results, task)]
    return {
        key: {name: value[name] for name in tasks if name in value}
        if isinstance(value, Mapping) and task in value
        else value
        for key, value in results.items()
    }


def problems(results: Mapping[str, Any]) -> list[str]:
    """Return what is missing from the result of an evaluation, one line each.

    These are tasks without any value, and what tasks report themselves, as data that could not be read.
    """
    empty = [task for task, values in results["results"].items() if not any("," in key for key in values)]
    found = [f"nothing could be measured for {', '.join(empty)}"] if empty else []
    return found + list(results.get("problems", ()))


def _problems_of_tasks(specs: Sequence[Any]) -> Iterator[str]:
    """What tasks, and then groups, report as their `problems`; those of other packages have none."""
    groups = [spec for spec in specs if isinstance(spec, Group)]
    tasks = [spec for spec in specs if not isinstance(spec, Group)]
    for group in groups:
        tasks += [task for task in group.get_all_tasks() if task not in tasks]
    for reporter in (*tasks, *groups):
        yield from getattr(reporter, "problems", ())


def _matching(manager: TaskManager, tasks: Sequence[str]) -> list[str]:
    names: list[str] = []
    for task in tasks:
        matches = manager.match_tasks([task])
        if not matches:
            known = ", ".join(name for name in manager.all_tasks if name.startswith(OWN_PREFIX))
            raise UserError(
                f"task '{task}' is not known to lm-eval or longshort. Longshort's tasks: {known}.", "setting", "tasks"
            )
        names.extend(name for name in matches if name not in names)
    return names


def require_folders(model_args: Mapping[str, Any]) -> None:
    """Refuse paths that do not exist; what may be a name on the hub is left to the loader.

    Raises:
        UserError: there is no such folder ("not_found").
    """
    for argument in ("pretrained", "tokenizer", *ADDED):
        name = str(model_args.get(argument, ""))
        if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
            what = "checkpoint" if argument == "pretrained" else argument
            raise UserError(f"{what} '{name}': no such folder. Give a folder or a model on the hub.", "not_found")


def _folder_name(model_args: Mapping[str, Any]) -> str:
    """The folder of a model's results, as lm-eval names it."""
    tracker = GeneralConfigTracker()
    tracker.log_experiment_args("hf", dict(model_args), None, None, False)
    return str(tracker.model_name_sanitized)


def _default_device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"
