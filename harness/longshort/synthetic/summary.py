"""Statistics and tables of a finished study: intervals over seeds, growth exponents, correlations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from longshort.analysis import coefficients
from longshort.analysis.intervals import ONE, delete_one, jackknife
from longshort.synthetic.tasks import TASKS, constant_half_error

Array = NDArray[np.float64]
CONFIDENCE = 0.95
MIN_SETTINGS = 4  # for a jackknife
MEASURES = ("error", "output_error", "undefined", "misalignment", "target_misalignment")


def models_table(results: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One row per model and length: ``task, encoding, seed, length``, the measures of `run_setting`, ``scale``."""
    parts = []
    for result in results:
        config, lengths = result["config"], result["lengths"]
        for index in range(config["seeds"]):
            model = {"task": config["task"], "encoding": config["encoding"], "seed": config["seed"] + index}
            measured = {name: np.array(result[name][index], dtype=np.float64) for name in MEASURES}
            parts.append(pd.DataFrame({**model, "length": lengths, **measured, "scale": result["target_scale"]}))
    table: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return table


def mean_interval(values: Array) -> tuple[float, float, float]:
    """Mean and 95 % t-interval of values [n], NaN below two of them: mean, lower, upper."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def by_length(models: pd.DataFrame) -> pd.DataFrame:
    """Mean and interval over seeds, one row per task, encoding and length.

    ``error`` is the mean squared error in the task's units with its t-interval, whose lower end may be below zero
    where seeds differ much. ``error_geometric`` is the geometric mean over seeds with the t-interval of the
    logarithm: it speaks of orders of magnitude, and is what the figures draw. ``constant_half`` is the
    expected error of the constant ½, in the mean task.
    """
    rows = []
    for key, group in models.groupby(["task", "encoding", "length"], sort=False):
        task, encoding, length = str(key[0]), str(key[1]), int(group["length"].iloc[0])
        row: dict[str, Any] = {"task": task, "encoding": encoding, "length": length, "seeds": len(group)}
        errors = group["error"].to_numpy(np.float64)
        _put(row, "error", mean_interval(errors))
        _put(row, "error_geometric", _geometric(errors))
        _put(row, "misalignment", mean_interval(group["misalignment"].to_numpy(np.float64)))
        row["target_misalignment"] = group["target_misalignment"].mean()
        row["undefined"] = group["undefined"].mean()
        row["constant_half"] = constant_half_error(length) if TASKS[task].of_mean else np.nan
        rows.append(row)
    return _table(rows)


def growth_exponents(models: pd.DataFrame, train_length: int) -> pd.DataFrame:
    """How the error of the length tasks grows beyond the training length l: exponents with intervals over seeds.

    An exponent is the least-squares slope of log squared error on log(length − l), fitted per model over all
    measured lengths beyond l (``exponent``) and over those of at least 2·l (``exponent_far``). Theorem 3.1 of the
    paper has a square: 2. A model that goes on counting for a few tokens before it levels off shows more than 2
    over the whole range, since its error starts near zero.
    """
    rows = []
    lengths = models[~models["task"].map(lambda name: TASKS[name].of_mean) & (models["length"] > train_length)]
    for (task, encoding), group in lengths.groupby(["task", "encoding"], sort=False):
        row: dict[str, Any] = {"task": task, "encoding": encoding, "seeds": group["seed"].nunique()}
        for name, smallest in (("exponent", train_length + 1), ("exponent_far", 2 * train_length)):
            part = group[group["length"] >= smallest]
            if part["length"].nunique() >= 3:
                slopes = [_slope(model, train_length) for _, model in part.groupby("seed")]
                _put(row, name, mean_interval(np.array(slopes)))
        rows.append(row | {"theorem_3_1": 2})
    return _table(rows)


def one_row_per_model(models: pd.DataFrame, train_length: int) -> pd.DataFrame:
    """Errors and misalignment within and beyond the training length, one row per model.

    ``error_within`` and ``error_beyond`` are means over lengths in the task's units; ``misalignment`` is that at
    the training length, ``misalignment_beyond`` the mean over longer ones. Names in ``scaled_`` are in standard
    deviations of the training targets, errors those of the network's output before inverting f.
    """
    rows = []
    for (task, encoding, seed), group in models.groupby(["task", "encoding", "seed"], sort=False):
        beyond, within = group[group["length"] > train_length], group[group["length"] <= train_length]
        scale = group["scale"].iloc[0]
        row = {
            "task": task,
            "encoding": encoding,
            "seed": seed,
            "error_within": within["error"].mean(),
            "error_beyond": beyond["error"].mean(),
            "error_longest": beyond["error"].iloc[-1],
            "misalignment": within.loc[within["length"] == train_length, "misalignment"].iloc[0],
            "misalignment_beyond": beyond["misalignment"].mean(),
        }
        row["scaled_error_beyond"] = beyond["output_error"].mean() / scale**2
        row["scaled_misalignment"] = row["misalignment"] / scale
        row["scaled_misalignment_beyond"] = row["misalignment_beyond"] / scale
        rows.append(row)
    return _table(rows)


def comparisons(models: pd.DataFrame, lengths: Iterable[int], train_length: int) -> pd.DataFrame:
    """The claims as ratios of mean squared errors beyond the training length, paired by seed.

    ``ratio`` is the geometric mean over seeds with the t-interval of the logarithm; below 1 the setting is better
    than ``against``. Three claims: OutRep against plain length prediction at the same encoding; in the mean task
    each encoding against none, and each against the constant ½. `models` is the table of `one_row_per_model`.
    """
    half = float(np.mean([constant_half_error(length) for length in lengths if length > train_length]))
    errors = {key: group["error_beyond"].to_numpy(np.float64) for key, group in models.groupby(["task", "encoding"])}
    rows = []
    for task, encoding in dict.fromkeys(zip(models["task"], models["encoding"], strict=True)):
        others: list[tuple[str, Array | None]] = []
        if task == "mean":
            others.append(("constant ½", np.full(1, half)))
            if encoding != "none":
                others.append(("no positions", errors.get((task, "none"))))
        elif task != "length":
            others.append(("plain length", errors.get(("length", encoding))))
        for against, error in others:
            if error is not None:
                row: dict[str, Any] = {"task": task, "encoding": encoding, "against": against}
                _put(row, "ratio", _geometric(errors[task, encoding] / error))
                rows.append(row)
    return _table(rows)


PAIRS = (
    ("misalignment", "error_beyond"),
    ("misalignment_beyond", "error_beyond"),
    ("scaled_misalignment", "scaled_error_beyond"),
    ("scaled_misalignment_beyond", "scaled_error_beyond"),
)


def correlations(models: pd.DataFrame) -> pd.DataFrame:
    """Correlate misalignment with the logarithm of the error beyond the training length, over models.

    Pearson's r is of the two logarithms. ``scope`` is all models; all within tasks, where each task's mean
    logarithms are taken off first, so that tasks' different units and difficulty do not count; or the models of one
    task. The seeds of a setting are not independent points: the interval is a jackknife that deletes one setting
    (task × encoding) at a time, as `longshort.analysis.intervals.jackknife` on Fisher's z. NaN below four settings.
    `models` is the table of `one_row_per_model`.
    """
    rows = []
    scopes = [
        ("all", models),
        ("within tasks", models),
        *((str(task), group) for task, group in models.groupby("task", sort=False)),
    ]
    for predictor, outcome in PAIRS:
        for scope, group in scopes:
            if scope not in ("all", "within tasks") and predictor.startswith("scaled_"):
                continue  # within a task a scale changes nothing
            logs = np.log(group[[predictor, outcome]])
            if scope == "within tasks":
                logs -= logs.groupby(group["task"]).transform("mean")
            x, y = logs.to_numpy(np.float64).T
            names, settings = np.unique((group["task"] + "/" + group["encoding"]).to_numpy(str), return_inverse=True)
            row: dict[str, Any] = {"predictor": predictor, "outcome": outcome, "scope": scope, "models": len(group)}
            row["settings"] = len(names)
            for name in ("spearman", "pearson"):
                _put(row, name, correlation_interval(name, x, y, settings))
            rows.append(row)
    return _table(rows)


def correlation_interval(name: str, x: Array, y: Array, settings: NDArray[np.intp]) -> tuple[float, float, float]:
    """A correlation with its 95 % interval by deleting one setting at a time.

    Args:
        name: ``pearson`` or ``spearman``.
        x, y: [n] values.
        settings: [n] the setting of each, numbered from 0.

    Returns:
        The coefficient, lower and upper end; NaN where it is not defined, ends also below four settings.
    """
    count = int(settings.max()) + 1
    deleted = delete_one(count) if count >= MIN_SETTINGS else np.empty((0, count))
    weights = np.vstack([np.ones(count), deleted])
    whole, *without = getattr(coefficients, name)(x, y, settings, weights).tolist()
    if not without:
        return whole, np.nan, np.nan
    # Ranks of few settings often agree perfectly: such a coefficient is moved just inside ±1, where z is finite.
    z = np.arctanh(np.clip([whole, *without], -ONE, ONE))
    if np.ptp(z[1:]) == 0:  # no setting matters: the formula gives an interval of width 0
        return whole, whole, whole
    low, high, _ = jackknife(float(z[0]), z[1:])
    return whole, float(np.tanh(low)), float(np.tanh(high))


def _slope(model: pd.DataFrame, train_length: int) -> float:
    x = np.log(model["length"].to_numpy(np.float64) - train_length)
    return float(np.polyfit(x, np.log(model["error"].to_numpy(np.float64)), 1)[0])


def _geometric(values: Array) -> tuple[float, float, float]:
    mean, low, high = np.exp(mean_interval(np.log(np.maximum(values, np.finfo(np.float64).tiny))))
    return float(mean), float(low), float(high)


def _put(row: dict[str, Any], name: str, interval: tuple[float, float, float]) -> None:
    row[name], row[f"{name}_lo"], row[f"{name}_hi"] = interval


def _table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    table: pd.DataFrame = pd.DataFrame(rows)
    return table
