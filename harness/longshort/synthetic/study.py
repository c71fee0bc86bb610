"""Trains and measures the models of every setting (task × position encoding), seeds side by side; resumes.

A setting's seeds train as one batched model. A finished setting is a file in ``OUT/settings/``; an unfinished one
leaves nothing and starts again from its seeds, so that an interrupted study ends with the numbers of one that was
not. On the CPU every setting runs on one thread, and several settings in processes of their own: the numbers do
not depend on how many cores there are, and operations this small gain nothing from a second thread.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from longshort.devices import available_cpus, require_device
from longshort.errors import UserError
from longshort.results import read_json, remove_left_over, write_atomically
from longshort.synthetic.config import StudyConfig
from longshort.synthetic.measure import measure, target_scale
from longshort.synthetic.parallel import run_all
from longshort.synthetic.tasks import TASKS
from longshort.synthetic.training import train


def run_study(config: StudyConfig, out: Path, device: str = "cpu", workers: int | None = None) -> list[dict[str, Any]]:
    """Run what `out` lacks of a study, with a progress bar over optimizer steps.

    Args:
        out: folder; finished settings are kept in ``settings/`` below it.
        workers: settings at once.  [default: one per core on the CPU, at most 8; else 1]

    Returns:
        One result per setting, as of `run_setting`, tasks then encodings in the order of `config`.

    Raises:
        UserError: a setting in `out` comes from another configuration (kind ``conflict``), or is damaged (``data``);
            the device is not available (``device``).
    """
    require_device(device)
    for place in (out, out / "settings", out / "figures"):
        remove_left_over(place)
    settings = [(task, encoding) for task in config.tasks for encoding in config.encodings]
    done = {setting: result for setting in settings if (result := _load(config, out, *setting)) is not None}
    missing = [setting for setting in settings if setting not in done]
    on_cpu = torch.device(device).type == "cpu"
    workers = min(workers or (min(available_cpus(), 8) if on_cpu else 1), max(len(missing), 1))
    total, finished = len(settings) * config.steps, len(done) * config.steps
    with tqdm(total=total, initial=finished, unit="step", desc="longshort synthetic", smoothing=0.05) as bar:
        bar.set_postfix_str(f"{len(done)} of {len(settings)} settings")
        for (task, encoding), result in run_all(run_setting, config, missing, device, workers, bar.update):
            write_atomically(_file(out, task, encoding), json.dumps(result, separators=(",", ":")))
            done[task, encoding] = result
            bar.set_postfix_str(f"{len(done)} of {len(settings)} settings")
    return [done[setting] for setting in settings]


def run_setting(
    config: StudyConfig, task: str, encoding: str, device: str, advance: Callable[[int], object]
) -> dict[str, Any]:
    """Train and measure the models of one setting.

    Returns:
        ``config``, ``environment``, ``seconds``, ``lengths`` [M]; ``train_loss`` [R], the mean over the last tenth
        of the steps; ``target_scale``, the standard deviation of training targets; and, [R][M], what
        `longshort.synthetic.measure.measure` returns, None for NaN.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        models, train_loss = train(config, TASKS[task], encoding, device, advance)
        measured = measure(models, config, TASKS[task], device)
    finally:
        torch.set_num_threads(before)
    return {
        "config": config.of_setting(task, encoding),
        "environment": environment(device),
        "seconds": round(time.perf_counter() - start, 1),
        "lengths": config.lengths,
        "train_loss": _rounded(train_loss),
        "target_scale": target_scale(config, TASKS[task]),
        **{key: _rounded(value) for key, value in measured.items()},
    }


def environment(device: str) -> dict[str, str]:
    """Versions and hardware that may change the last digits."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.machine()
    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__, "device": name}


def _rounded(values: torch.Tensor) -> list[Any]:
    """Six significant digits, NaN as None."""
    rounded = [[None if math.isnan(v) else float(f"{v:.6g}") for v in row] for row in values.reshape(len(values), -1)]
    return rounded if values.dim() == 2 else [row[0] for row in rounded]


def _file(out: Path, task: str, encoding: str) -> Path:
    return out / "settings" / f"{task}_{encoding}.json"


def _load(config: StudyConfig, out: Path, task: str, encoding: str) -> dict[str, Any] | None:
    file = _file(out, task, encoding)
    if not file.exists():
        return None
    remedy = "Remove it, or choose another --output."
    result = read_json(file, remedy)
    found = result.get("config")
    if not isinstance(found, dict):
        raise UserError(f"{file} is not a finished setting of a study. {remedy}", "data")
    wanted = json.loads(json.dumps(config.of_setting(task, encoding)))
    if found != wanted:
        differs = ", ".join(key for key in wanted if found.get(key) != wanted[key])
        raise UserError(f"{file} was made with other settings ({differs}). {remedy}", "conflict")
    return result
