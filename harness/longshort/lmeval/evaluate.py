"""One checkpoint through lm-eval, without its scan of all its own task files; same results JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

from longshort.devices import require_device
from longshort.errors import Kind, UserError
from longshort.lmeval.compat import quiet
from longshort.lmeval.task_folder import tasks_folder
from longshort.lmeval.weights import no_random_weights
from longshort.load_errors import why_not_loaded
from longshort.longbench.scores import DATASETS, LONGBENCH, LONGBENCH_PREFIX
from longshort.results import write_atomically
from longshort.scoring.lm_head import smaller_chunks
from longshort.settings import DEFAULT_TASKS


@dataclass(frozen=True)
class Prepared:
    """Tasks that are read and checked, for one model after another.

    Attributes:
        manager: lm-eval's, which knows their names.
        specs: what `simple_evaluate` takes for them.
    """

    manager: TaskManager
    specs: list[Any]


def evaluate_checkpoint(
    model_args: Mapping[str, Any],
    *,
    tasks: Sequence[str] = DEFAULT_TASKS,
    metadata: Mapping[str, Any] | None = None,
    output: Path | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    limit: float | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Evaluate one checkpoint; return, and where `output` is given write, what ``lm_eval run`` would.

    Args:
        model_args: as lm-eval's ``--model_args`` for its ``hf`` backend; at least ``pretrained``.
        tasks: names or globs, of longshort's tasks or any other of lm-eval's.
        metadata: the settings of `longshort.settings.EvalSettings`.
        output: folder; the file is ``<output>/<model name>/results_<time>.json``.
        batch_size: documents per forward, or "auto".
        device: "cpu", "cuda:0", …; by default a GPU where there is one.
        limit: documents (or, below 1, the share of them) per task.
        log_samples: also write each task's per-document values.

    Raises:
        UserError: an unknown task or corpus, a device that is not there, a checkpoint that cannot be loaded, a
            folder that cannot be written (found before any work is done).
    """
    for what in ("pretrained", "tokenizer", "peft", "delta"):
        if what in model_args:
            require_checkpoint(str(model_args[what]), "checkpoint" if what == "pretrained" else what)
    if device:
        require_device(device)
    if output:
        _require_writable(output)
    prepared = prepare_tasks(tasks, dict(model_args) | dict(metadata or {}))  # a wrong setting costs no loading
    lm = load_checkpoint(model_args, batch_size=batch_size, device=device)
    results = evaluate_loaded(
        lm, model_args, prepared, batch_size=batch_size, device=device, limit=limit, log_samples=log_samples
    )
    if not results:  # not the first process
        return {}
    samples = results.pop("samples", None)
    if output:
        _write(results, samples, output)
    return results


def prepare_tasks(names: Sequence[str], metadata: Mapping[str, Any]) -> Prepared:
    """Read and check tasks; `metadata` holds their settings and, as lm-eval has it, the model's arguments.

    Raises:
        UserError: an unknown task or corpus, a wrong setting.
    """
    manager = _task_manager(names, dict(metadata))
    matching = _matching(manager, names)
    built: dict[str, Any] = {}
    for entry in [manager.load(name) for name in matching]:
        built |= entry["tasks"] | entry.get("groups", {})
    return Prepared(manager, [built.get(name, name) for name in matching])  # a tag names tasks, not one


def load_checkpoint(
    model_args: Mapping[str, Any],
    *,
    batch_size: int | str = 1,
    device: str | None = None,
) -> LM:
    """Load a checkpoint as lm-eval's ``hf`` backend does, but never with random weights in place of missing ones.

    Raises:
        UserError: it cannot be loaded, or lacks weights.
            Its kind is `out_of_memory` where it does not fit.
    """
    others = {"batch_size": batch_size, "max_batch_size": None, "device": device or _default_device()}
    name = model_args["pretrained"]
    try:
        with quiet(), no_random_weights():
            return get_model("hf").create_from_arg_obj(dict(model_args), others)
    except UserError:
        raise
    except Exception as error:  # whatever loading a damaged checkpoint raises
        kind: Kind = "out_of_memory" if should_reduce_batch_size(error) else "broken"
        raise UserError(f"checkpoint '{name}' cannot be loaded: {why_not_loaded(name, error)}", kind) from error


def evaluate_loaded(
    lm: LM,
    model_args: Mapping[str, Any],
    prepared: Prepared,
    *,
    batch_size: int | str = 1,
    device: str | None = None,
    limit: float | None = None,
    log_samples: bool = False,
    chunk_divisor: int = 1,
) -> dict[str, Any]:
    """Evaluate a loaded checkpoint; return what ``lm_eval run`` writes (empty on other than the first process).

    With `log_samples` the per-document values are returned as ``samples``. Logits take 1 / `chunk_divisor` of their
    usual memory.
    """
    tracker = EvaluationTracker()
    with quiet(), smaller_chunks(chunk_divisor):
        results: dict[str, Any] | None = simple_evaluate(
            model=lm,
            model_args=dict(model_args),
            tasks=prepared.specs,
            batch_size=batch_size,
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
    return results | {"task_hashes": hashes} | asdict(tracker.general_config_tracker)


def to_json(results: Mapping[str, Any]) -> str:
    """The text of a results file, as lm-eval writes it."""
    return json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)


def problems(results: Mapping[str, Any]) -> list[str]:
    """What a result lacks: tasks without any value, LongBench-E rows or datasets that could not be read."""
    found = []
    empty = [task for task, values in results["results"].items() if not any("," in key for key in values)]
    if empty:
        found.append(f"nothing could be measured for {', '.join(empty)}")
    for task, config in results["configs"].items():
        if task.startswith(LONGBENCH_PREFIX) and config["metadata"]["scored"]["left_out"]:
            found.append(f"rows of {task} were left out")
    measured = [task for task in results["configs"] if task.startswith(LONGBENCH_PREFIX)]
    if LONGBENCH in results["results"] and len(measured) < len(DATASETS):
        found.append(f"{len(DATASETS) - len(measured)} of {len(DATASETS)} LongBench-E datasets could not be read")
    return found


def _task_manager(tasks: Sequence[str], metadata: dict[str, Any]) -> TaskManager:
    """Longshort's tasks alone, unless others are asked for: reading all of lm-eval's takes seconds."""
    ours = TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata=metadata)
    if all(ours.match_tasks([task]) for task in tasks):
        return ours
    return TaskManager(include_path=str(tasks_folder()), metadata=metadata)


def _matching(manager: TaskManager, tasks: Sequence[str]) -> list[str]:
    names: list[str] = []
    for task in tasks:
        matches = manager.match_tasks([task])
        if not matches:
            known = ", ".join(name for name in manager.all_tasks if name.startswith("longshort_"))
            raise UserError(f"task '{task}' is not known to lm-eval or longshort. Longshort's: {known}.")
        names.extend(name for name in matches if name not in names)
    return names


def require_checkpoint(name: str, what: str = "checkpoint") -> None:
    """Tell at once a path that is none; what may be a name on the hub is looked for there.

    Raises:
        UserError: no such folder.
    """
    if (name.startswith(("/", ".", "~")) or name.count("/") > 1) and not Path(name).is_dir():
        raise UserError(f"{what} '{name}': no such folder. Name a folder or a model on the hub.")


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {folder} cannot be made: {error.strerror}. Choose another with -o.") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"output folder {folder} is not writable. Choose another with -o.")


def _write(results: dict[str, Any], samples: dict[str, list[Any]] | None, output: Path) -> None:
    """What lm-eval's tracker writes, where it writes it, but atomically and with errors told."""
    date = datetime.now().isoformat().replace(":", "-")
    name = str(results["model_name_sanitized"])
    _require_writable(output / name)
    write_atomically(output / name / f"results_{date}.json", to_json(results))
    for task, rows in (samples or {}).items():
        write_atomically(output / name / f"samples_{task}_{date}.jsonl", "".join(map(_sample_line, rows)))


def _sample_line(row: Mapping[str, Any]) -> str:
    """One document's values, as lm-eval's tracker writes them."""
    arguments = {
        f"gen_args_{index}": {f"arg_{part}": value for part, value in enumerate(values)}
        for index, values in enumerate(row["arguments"])
    }
    lists = {name: sanitize_list(row[name]) for name in ("resps", "filtered_resps")}
    row = {**row, **lists, "target": str(row["target"]), "arguments": arguments}
    return json.dumps(row, default=handle_non_serializable, ensure_ascii=False) + "\n"


def _default_device() -> str:
    return "cuda:0" if torch.cuda.is_available() else "cpu"
