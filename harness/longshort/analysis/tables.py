"""From the tidy table to one row per checkpoint: what may predict, and what is to be predicted."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longshort.analysis.floors import flag_columns
from longshort.analysis.other_tasks import column_of, effective_length_columns, effective_lengths
from longshort.errors import UserError
from longshort.results.floors import FLOOR_METRICS, floor_of

PERPLEXITY, MISALIGNMENT, LONGBENCH = "longshort_perplexity", "longshort_misalignment", "longshort_longbench_e"
LONGPPL, RETRIEVAL = "longshort_longppl", "longshort_retrieval"
BY_LENGTH = (PERPLEXITY, MISALIGNMENT, LONGPPL, RETRIEVAL)  # longshort's tasks on a corpus, whose metrics have a length
IDENTITY = ["checkpoint", "revision"]
MEASUREMENT = ["task", "metric", "length", "value", "stderr"]
ABOUT = ["family", "params", "train_tokens", "train_length"]

MISALIGNMENT_METRICS = {
    "sce": "SCE",
    "sce_last": "SCE, last position",
    "sce_overlap": "SCE, all shared positions",
    "entropy": "entropy part of SCE",
    "jeffreys": "Jeffreys divergence",
    "js": "Jensen–Shannon divergence",
    "agreement": "top-1 agreement",
}
EXCESS = {f"{metric}_excess": metric for metric in FLOOR_METRICS.values()}  # less the numerical floor
PERFORMANCE = {  # how well a checkpoint predicts its own corpus, with the unit
    "longppl": ("LongPPL (log)", "nats per key token"),
    "longppl_self": ("LongPPL, self-evaluated (log)", "nats per key token"),
    "context_gain": ("context gain", "nats per token"),
    "accuracy_tail": ("top-1 accuracy on the fixed targets", "share"),
    "nll": ("NLL", "nats per token"),
}
ALWAYS = (*MISALIGNMENT_METRICS, *(f"{metric}_beyond" for metric in MISALIGNMENT_METRICS), "nll")
PREDICTORS = (*ALWAYS[:-1], *EXCESS, *(f"{name}_beyond" for name in EXCESS), *PERFORMANCE)
# Perplexity of the first L tokens, and of one and the same set of target tokens at every L.
VIEWS = {"ppl": "", "ppl_tail": "_tail"}
LONGBENCH_OUTCOMES = (f"{LONGBENCH}:score", f"{LONGBENCH}:score@8k+")
RECALL = {"recall": ("retrieval recall", "share"), "recall_nll": ("NLL of the values to retrieve", "nats per token")}
OUTCOME = re.compile(r"recall(_nll)?@\d+|log_ppl(_tail)?(_increase)?@\d+|effective_length(_tail)?")

Measurement = tuple[float, float]  # value, standard error
Measurements = dict[tuple[str, int | None], Measurement]  # by metric and length
MISSING: Measurement = (np.nan, np.nan)

# A context counts as usable while log-perplexity has risen by no more than this over its best, in nats.
TOLERANCE = 0.05


def wide_table(
    tidy: pd.DataFrame,
    corpus: str | None = None,
    *,
    threshold: float | None = None,
    lower_is_better: Collection[tuple[str, str]] = (),
) -> pd.DataFrame:
    """Turn the tidy table into one row per checkpoint and revision.

    What was not measured, or cannot be said because ``train_length`` is not known, is NaN.

    Columns:
        checkpoint, revision, family, params, train_tokens, train_length: as in the tidy table.
        log_params: natural logarithm of params.
        PREDICTORS: ``sce`` … ``agreement`` at the training context length (nats, except the last: a share); the same
            with ``_beyond`` at the next length that was measured on checkpoints of this training context length;
            ``nll``, the log-perplexity at the training context length, in nats per token.
        jeffreys_excess, js_excess, …_excess_beyond: the divergence minus its numerical floor, in nats; may be negative,
            and is missing where no floor was measured.
        longppl, longppl_self: log of LongPPL at the training context length, in nats per key token, with the key
            tokens of an evaluator model or of the checkpoint itself.
        context_gain: NLL of the fixed targets at the smallest context minus that at the training context length, in
            nats per token. The smallest context is the same for all checkpoints.
        accuracy_tail: top-1 accuracy on the fixed targets at the training context length, a share.
        recall@L, recall_nll@L: share of the values retrieved, and their NLL in nats per token, for each L beyond the
            training context length.
        log_ppl@L: log-perplexity for each L beyond the training context length, in nats per token.
        log_ppl_increase@L: the same minus that at the training context length.
        effective_length: the largest L, in tokens, at which log-perplexity has risen by no more than 0.05 nats
            over its best. One of the lengths measured, so at the greatest of them it means "at least".
        log_ppl_tail@L, log_ppl_tail_increase@L, effective_length_tail: from the fixed-target view.
        TASK:METRIC, TASK:METRIC@L: any metric of any other task, as ``longshort_longbench_e:score@8k+`` or, where it
            is of one context length, ``ruler:score@8192``.
        effective_length:TASK: of any other task that has a metric by length, and of ``longshort_retrieval``'s recall:
            see `longshort.analysis.other_tasks.effective_length`. Where a task has several such metrics,
            ``effective_length:TASK:METRIC``.
        jeffreys_floor, js_floor, …_beyond_floor: the numerical floors of half precision, where they were measured;
            jeffreys_below_floor and so on: whether the value is below three times its floor, False where there is none.
        NAME_stderr: standard error of NAME over documents, for the columns that are a single measurement. There is
            none for a difference (``context_gain``, ``…_excess``, ``log_ppl_increase@L``): both of its ends share
            documents, and their covariance is not in the results.

    Args:
        tidy: the table of `longshort.results.read_results`. Checkpoints that have no result of `BY_LENGTH` on the
            corpus are skipped.
        corpus: which corpus's measurements to use; needed where one task has several, see `of_corpus`.
        threshold: score that a length needs to count as effective; by default 85 % of that at the shortest length.
        lower_is_better: other tasks and metrics of which less is better, as `longshort.results.read` reports them.

    Raises:
        UserError: several corpora (kind ``setting``), or none of that name (``usage``); one checkpoint with several
            training context lengths (``data``).
    """
    effective = effective_length_columns(tidy, lower_is_better)
    of_checkpoint = pd.concat([of_corpus(tidy, corpus), tidy[~_is_ours(tidy)]]).groupby(IDENTITY, dropna=False)
    tidy = of_corpus(tidy, corpus)
    lengths = sorted(int(length) for length in tidy.loc[tidy["metric"].isin([*VIEWS, *RECALL]), "length"].unique())
    shortest = _shortest_context(tidy)
    beyond = _lengths_beyond(tidy)
    rows: list[dict[str, Any]] = []
    for (checkpoint, revision), results in of_checkpoint:
        measured = results[_is_ours(results)]
        if measured.empty:
            continue
        about = {name: _first(measured[name]) for name in ABOUT} | {"family": _family(measured)}
        train_length = _train_length(measured)
        values: Measurements = {
            (metric, int(length)): (value, stderr)
            for _, metric, length, value, stderr in measured[MEASUREMENT].to_numpy()
        }
        row = {"checkpoint": checkpoint, "revision": revision, **about}
        row["log_params"] = np.nan if pd.isna(about["params"]) else float(np.log(about["params"]))
        for metric in MISALIGNMENT_METRICS:
            _put_misalignment(row, metric, values, metric, train_length)
        for metric in MISALIGNMENT_METRICS:
            _put_misalignment(row, f"{metric}_beyond", values, metric, beyond.get((metric, train_length)))
        for name in EXCESS:
            for where in ("", "_beyond"):
                row[f"{name}{where}"] = row[f"{EXCESS[name]}{where}"] - row[f"{EXCESS[name]}{where}_floor"]
        for metric in ("longppl", "longppl_self"):
            _put(row, metric, _log_perplexity(values, metric, train_length))
        row["context_gain"] = _context_gain(values, shortest, train_length)
        _put(row, "accuracy_tail", values.get(("accuracy_tail", train_length)))
        _put(row, "nll", _log_perplexity(values, "ppl", train_length))
        for metric, length in product(RECALL, lengths):
            if train_length and length > train_length:
                _put(row, f"{metric}@{length}", values.get((metric, length)))
        for metric, view in VIEWS.items():
            _put_outcomes(row, view, train_length, {n: _log_perplexity(values, metric, n) for n in lengths})
        for task, metric, length, value, stderr in results.loc[~_is_ours(results), MEASUREMENT].to_numpy():
            _put(row, column_of(task, metric, length), (value, stderr))
        row |= effective_lengths(results, effective, threshold)
        rows.append(row)
    wide: pd.DataFrame = pd.DataFrame(rows).astype({name: tidy.dtypes[name] for name in [*IDENTITY, *ABOUT]})
    always = {*IDENTITY, *ABOUT, "log_params", *ALWAYS}
    empty = [name for name in wide if name not in always and wide[name].isna().all()]
    kept: pd.DataFrame = wide.drop(columns=empty)
    flag_columns(kept)
    return kept


def predictors(wide: pd.DataFrame) -> list[str]:
    """Names of the predictor columns that hold any value."""
    return [name for name in PREDICTORS if name in wide and wide[name].notna().any()]


def outcomes(wide: pd.DataFrame) -> list[str]:
    """Names of the outcome columns that hold any value: LongBench-E overall and 8k+, then recall and perplexity."""
    names = [*LONGBENCH_OUTCOMES, *(name for name in map(str, wide) if OUTCOME.fullmatch(name))]
    return [name for name in names if name in wide and wide[name].notna().any()]


def of_corpus(tidy: pd.DataFrame, corpus: str | None = None) -> pd.DataFrame:
    """The results of the tasks `BY_LENGTH` on one corpus for each task, from the tidy table.

    A task that was measured on one corpus uses it. LongPPL and retrieval may have a corpus of their own, so they use
    their one corpus also where `corpus` names another one.

    Raises:
        UserError: a task has several corpora and none of them is named (kind ``setting``), or nothing was measured on
            `corpus` (``usage``) or at all (``data``).
    """
    measured = tidy[_is_ours(tidy) & tidy["length"].notna()]
    of_task = {str(task): sorted(rows.dropna().unique()) for task, rows in measured.groupby("task")["corpus"]}
    known = sorted({name for names in of_task.values() for name in names})
    if measured.empty or (corpus is not None and corpus not in known):
        raise UserError(
            f"There are no results of {', '.join(BY_LENGTH)} on corpus '{corpus or 'any'}'. "
            f"Measured corpora: {', '.join(known) or 'none'}.",
            "usage" if corpus else "data",
            "corpus",
        )
    kept = pd.Series(True, index=measured.index)
    for task, names in of_task.items():
        if corpus in names or (corpus is not None and task in (PERPLEXITY, MISALIGNMENT)):
            kept &= (measured["task"] != task) | (measured["corpus"] == corpus).fillna(False).astype(bool)
        elif len(names) > 1:
            raise UserError(
                f"{task} was measured on several corpora ({', '.join(names)}). Choose one with --corpus"
                f"{', or move the results of the others away' if corpus else ''}.",
                "setting",
                "corpus",
            )
    chosen: pd.DataFrame = measured[kept]
    return chosen


def _is_ours(tidy: pd.DataFrame) -> pd.Series[bool]:
    return tidy["task"].isin(BY_LENGTH)


def _put(row: dict[str, Any], name: str, measurement: Measurement | None) -> None:
    row[name], row[f"{name}_stderr"] = measurement or MISSING


def _put_misalignment(row: dict[str, Any], name: str, values: Measurements, metric: str, length: int | None) -> None:
    _put(row, name, values.get((metric, length)))
    if metric in FLOOR_METRICS.values():
        row[f"{name}_floor"], _ = values.get((floor_of(metric), length), MISSING)


def _put_outcomes(row: dict[str, Any], view: str, train_length: int | None, curve: dict[int, Measurement]) -> None:
    """Add the outcomes of one view; `curve` holds log-perplexity by length."""
    reference, _ = curve.get(train_length, MISSING) if train_length else MISSING
    for length in curve:
        if train_length and length > train_length:
            _put(row, f"log_ppl{view}@{length}", curve[length])
            # No standard error: both ends share documents, and their covariance is not in the results.
            row[f"log_ppl{view}_increase@{length}"] = curve[length][0] - reference
    best = min((value for value, _ in curve.values() if value == value), default=np.nan)
    usable = [length for length, (value, _) in curve.items() if value <= best + TOLERANCE]
    row[f"effective_length{view}"] = float(max(usable, default=np.nan))


def _log_perplexity(values: Measurements, metric: str, length: int | None) -> Measurement:
    if (metric, length) not in values:
        return MISSING
    value, stderr = values[metric, length]
    return float(np.log(value)), stderr / value  # the delta method


def _context_gain(values: Measurements, shortest: int | None, train_length: int | None) -> float:
    """By how much the fixed targets' NLL is lower at the training context length than at the shortest context."""
    if shortest is None or train_length is None or shortest >= train_length:
        return np.nan
    short, long = (_log_perplexity(values, "ppl_tail", length)[0] for length in (shortest, train_length))
    return short - long


def _shortest_context(tidy: pd.DataFrame) -> int | None:
    """The context of the fixed targets that most checkpoints have below their training context length.

    One for all, so that gains compare; the shortest of those that equally many have.
    """
    tails = tidy[tidy["metric"] == "ppl_tail"]
    trained = tails.loc[(tails["length"] == tails["train_length"]).fillna(False).astype(bool), IDENTITY]
    below = tails[(tails["length"] < tails["train_length"]).fillna(False).astype(bool)].merge(trained, on=IDENTITY)
    counts = below["length"].value_counts()
    return min(map(int, counts.index[counts == counts.max()]), default=None)


def _lengths_beyond(tidy: pd.DataFrame) -> dict[tuple[str, int | None], int]:
    """The next length after each training context length, by metric: one for all checkpoints, so that they compare."""
    after = tidy[(tidy["length"] > tidy["train_length"]).fillna(False)]
    following = after.groupby(["metric", "train_length"], as_index=False)["length"].min()
    return {(metric, int(trained)): int(length) for metric, trained, length in following.to_numpy()}


def _train_length(measured: pd.DataFrame) -> int | None:
    lengths = sorted(int(length) for length in measured["train_length"].dropna().unique())
    if len(lengths) > 1:
        raise UserError(
            f"{measured['checkpoint'].iloc[0]} was measured with train_length {' and '.join(map(str, lengths))}. "
            "Evaluate it again with one of them, or move the other results away.",
            "data",
        )
    return lengths[0] if lengths else None


def _family(measured: pd.DataFrame) -> Any:
    """The one that was given: where a run is told none, it has its checkpoint's name for one."""
    parts = measured["checkpoint"].iloc[0].split("+")  # of its own name, or before an adapter's
    names = {Path("+".join(parts[:count])).name for count in range(1, len(parts) + 1)}
    return _first(measured["family"].sort_values(key=lambda family: family.isin(names), kind="stable"))


def _first(column: pd.Series) -> Any:
    known = column.dropna()
    return known.iloc[0] if len(known) else pd.NA
