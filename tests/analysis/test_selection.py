import numpy as np
import pandas as pd
import pytest

from longshort.analysis.selection import (
    check_columns,
    check_group,
    keep_where,
    main_outcomes,
    main_predictors,
)
from longshort.analysis.tables import PREDICTORS
from longshort.errors import UserError
from tests.errors import user_error

COLUMN = "longshort_longbench_e:score@8k+"


@pytest.fixture
def wide():
    return pd.DataFrame(
        {
            "checkpoint": pd.array(["a", "b", "c", "d"], "string"),
            "revision": pd.array(["main", "main", None, "x"], "string"),
            "family": pd.array(["llama", "llama", "qwen", "o'neil"], "string"),
            "params": pd.array([1, 2, 3, None], "Int64"),
            "sce": [4.0, 5.0, np.nan, 7.0],
            "sce_stderr": 0.1,
            "log_ppl@128": [1.0, 2.0, 3.0, 4.0],
            "log_ppl@256": [1.0, 2.0, 3.0, np.nan],
            COLUMN: [1.0, 2.0, 3.0, 4.0],
            "js": np.nan,
        }
    )


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("params < 3", "ab"),
        ("params <= 3 and family != 'llama'", "c"),
        ("family == 'qwen' or sce > 6", "cd"),
        ("not (sce >= 5)", "ac"),  # a comparison with what is missing is false
        ("sce >= 5", "bd"),
        ("params < 8e9", "abc"),
        ("`log_ppl@128` > 1 & `log_ppl@128` < 4", "bc"),
        (f"`{COLUMN}` / 2 + 1 >= 2.5", "cd"),
        ("family in ['llama', 'qwen'] and params not in (1, 2)", "c"),
        ('family == "o\'neil"', "d"),
        ("1 < params < 3", "b"),
        ("-sce < -4.5", "bd"),
        ("  sce == 4 ", "a"),
        ("revision == 'main'", "ab"),
    ],
)
def test_where(wide, expression, expected):
    kept = keep_where(wide, expression)
    assert "".join(kept["checkpoint"]) == expected
    assert kept.index.tolist() == list(range(len(expected)))
    assert kept.dtypes.equals(wide.dtypes)


@pytest.mark.parametrize(
    ("expression", "fact"),
    [
        ("params <", "'params <'"),
        ("", "''"),
        ("params = 3", "'params = 3'"),
        ("`log_ppl@128 > 3", "`log_ppl@128 > 3"),
        ("parms < 3", "'parms' .* params"),
        ("`log_ppl@129` < 3", "'log_ppl@129' .* log_ppl@128"),
        ("zzzz > 1", "'zzzz' .* checkpoint, revision"),
        ("params", "'params'"),
        ("True", "'True'"),
        ("family < 3", "'family < 3'"),
        ("params > 100", "'params > 100' .* 4 checkpoints"),
        ("@wide.params > 1", "'@wide.params > 1'"),
        ("params > @np.inf", "'params > @np.inf'"),
        ("sce.max() > 1", r"\(Call\)"),
        ("__import__('os').system('true') == 0", r"\(Call\)"),
        ("sce.__class__ == 1", r"\(Attribute\)"),
        ("sce[0] > 1", r"\(Subscript\)"),
        ("[x for x in family] == 1", r"\(ListComp\)"),
        ("(lambda: 1) == 1", r"\(Lambda\)"),
        ("(sce := 3) > 1", r"\(NamedExpr\)"),
        ("9 ** 9 ** 9 > sce", r"\(Pow\)"),
        ("f'{sce}' == family", r"\(JoinedStr\)"),
        ("sce > 1; sce", "'sce > 1; sce'"),
    ],
)
def test_a_wrong_where_is_wrong_usage_on_one_line(wide, expression, fact):
    with pytest.raises(UserError, match=fact) as raised:
        keep_where(wide, expression)
    assert (raised.value.kind, raised.value.field) == ("usage", "where")
    assert "\n" not in raised.value.message


def test_where_runs_no_code(wide, tmp_path):
    target = tmp_path / "written"
    for expression in (f"@open('{target}', 'w')", f"open('{target}', 'w')", f"sce > open('{target}', 'w')"):
        with pytest.raises(UserError) as raised:
            keep_where(wide, expression)
        assert raised.value.field == "where"
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("scee", "sce"),
        ("log_ppl@512", "log_ppl@"),
        ("longbench", COLUMN),
        ("js", "params, sce, "),  # there, but nothing in it
        ("sce_stderr", "params, sce, "),
        ("family", "params, sce, "),
        ("zzzzzz", "params, sce, "),
    ],
)
def test_an_unknown_column_gets_near_names(wide, name, near):
    check_columns("outcome", ["sce", COLUMN, "params"], wide)
    with user_error("usage", f"'{name}'", near, field="outcome"):
        check_columns("outcome", ["sce", name], wide)


def test_groups_may_be_any_column(wide):
    for name in wide:
        check_group(name, wide)
    with user_error("usage", "'famly'", "family", field="group_by"):
        check_group("famly", wide)


def test_what_is_shown_where_there_is_room_for_few(wide):
    assert main_predictors(PREDICTORS) == ["sce", "jeffreys", "entropy", "nll"]
    assert main_predictors(["js", "sce_last"]) == ["js", "sce_last"]
    assert main_predictors(list("vwxyz")) == list("vwxy")
    names = ["log_ppl@128", "log_ppl_increase@128", "log_ppl@256", "effective_length", COLUMN]
    assert main_outcomes(names, wide) == [COLUMN, "log_ppl@128", "effective_length"]  # 256 lacks a checkpoint
    assert main_outcomes(names, wide.iloc[:3]) == [COLUMN, "log_ppl@256", "effective_length"]
    wide["recall@128"] = wide["recall@256"] = 0.5
    both = ["recall@128", "recall@256", "recall_nll@256", *names]
    assert main_outcomes(both, wide) == [COLUMN, "recall@256", "log_ppl@128", "effective_length"]
    assert main_outcomes(["effective_length", "sce"], wide) == ["effective_length", "sce"]
