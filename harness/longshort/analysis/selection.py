"""Choices by name: the columns of an analysis, and the checkpoints to keep."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Sequence

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from longshort.analysis.floors import FLOOR_COLUMNS
from longshort.analysis.tables import IDENTITY, LONGBENCH_OUTCOMES
from longshort.errors import UserError, listed

# What `where` may be made of. Anything else that pandas evaluates (calls, attributes, @variables) could run code.
ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.UAdd,
    ast.BinOp, ast.BitAnd, ast.BitOr, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Mod,
    ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn,
    ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
EXAMPLE = """as in "params < 8e9 and family != 'llama'", or "`log_ppl@8192` < 4\""""

MAX_MAIN = 4
MAIN_PREDICTORS = ("sce", "jeffreys", "entropy", "nll")


def check_columns(what: str, names: Iterable[str], wide: pd.DataFrame) -> None:
    """Check that every name is a column that holds numbers.

    Raises:
        UserError: one is not (kind ``usage``); the message has near names.
    """
    known = [str(name) for name in wide if _is_measured(wide, str(name))]
    for name in names:
        if name not in known:
            raise UserError(f"{what} '{name}' is not among what was measured. {_near(name, known)}", "usage", what)


def check_group(name: str, wide: pd.DataFrame) -> None:
    """Check that there is this column, which says which checkpoints belong together.

    Raises:
        UserError: there is not (kind ``usage``).
    """
    if name not in wide:
        raise UserError(
            f"'{name}' cannot be grouped by: no such column. {_near(name, list(map(str, wide)))}", "usage", "group_by"
        )


def keep_where(wide: pd.DataFrame, expression: str) -> pd.DataFrame:
    """The rows of which an expression is true, in the syntax of `pandas.DataFrame.query`.

    Comparisons, arithmetic, and, or, not and in, over columns and constants; nothing that could run code. A row
    that lacks a value which the expression needs is dropped.

    Raises:
        UserError: the expression is none of these, names no column, or is true of no row (kind ``usage``).
    """
    quoted: list[str] = re.findall(r"`([^`]*)`", expression)
    try:
        tree = ast.parse(re.sub(r"`[^`]*`", "__quoted__", expression).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _where_error(f"{expression!r} cannot be understood. Write a condition, {EXAMPLE}.") from error
    for node in ast.walk(tree):
        if not isinstance(node, ALLOWED):
            raise _where_error(
                f"{expression!r} holds more than comparisons of columns and constants ({type(node).__name__}). "
                f"Write a condition, {EXAMPLE}."
            )
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"__quoted__"}
    for name in [*sorted(names), *quoted]:
        if name not in wide:
            raise _where_error(f"'{name}' is not a column. {_near(name, list(map(str, wide)))}")
    try:
        chosen = wide.eval(expression.strip(), engine="python")
    except Exception as error:  # pandas raises many kinds, as for text compared with a number
        cause = " ".join(str(error).split())[:200]
        raise _where_error(f"{expression!r} cannot be evaluated: {cause}. Write it {EXAMPLE}.") from error
    if not isinstance(chosen, pd.Series) or not is_bool_dtype(chosen.dtype):
        raise _where_error(f"{expression!r} is not a condition on checkpoints. Write one, {EXAMPLE}.")
    kept: pd.DataFrame = wide[chosen.fillna(False).astype(bool)].reset_index(drop=True)
    if kept.empty:
        raise _where_error(f"{expression!r} is true of none of {len(wide)} checkpoints.")
    return kept


def _where_error(problem: str) -> UserError:
    return UserError(f"where: {problem}", "usage", "where")


def main_predictors(names: Sequence[str]) -> list[str]:
    """Those to show where there is room for few."""
    return _few(names, MAIN_PREDICTORS)


def main_outcomes(names: Sequence[str], wide: pd.DataFrame) -> list[str]:
    """Those to show where there is room for few: LongBench-E, recall and log-perplexity at their furthest, reach."""
    furthest = [name for metric in ("recall", "log_ppl") for name in _furthest(metric, names, wide)]
    return _few(names, [*LONGBENCH_OUTCOMES, *furthest, "effective_length"])


def _furthest(metric: str, names: Sequence[str], wide: pd.DataFrame) -> list[str]:
    """The metric at the largest length that most checkpoints have; none if it was not measured."""
    lengths = {name: int(name.partition("@")[2]) for name in names if re.fullmatch(rf"{metric}@\d+", name)}
    return sorted(lengths, key=lambda name: (wide[name].notna().sum(), lengths[name]))[-1:]


def _few(names: Sequence[str], preferred: Iterable[str]) -> list[str]:
    if len(names) <= MAX_MAIN:
        return list(names)
    return ([name for name in preferred if name in names] or list(names))[:MAX_MAIN]


def _is_measured(wide: pd.DataFrame, name: str) -> bool:
    column = wide[name]
    return (
        name not in IDENTITY
        and name not in FLOOR_COLUMNS
        and not name.endswith("_stderr")
        and is_numeric_dtype(column.dtype)
        and bool(column.notna().any())
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    near += [other for other in known if name.lower() in other.lower() and other not in near][: 10 - len(near)]
    if near:
        return f"Near names: {', '.join(near)}."
    return f"Known: {listed(known, 30)}."
