"""The comparison with official code, with stand-ins for the checkouts."""

import math
from pathlib import Path

import compare_official as script
import pandas as pd
import pytest
import torch
from official.source import Checkout
from official.table import NOT_COMPARED, Comparison, Difference, measured, of_names, of_tensors

from tests.errors import user_error

ROOT = Path(__file__).parents[2]

EABF = """
import math
import a_library_that_is_not_installed
from transformers.models.llama import modeling_llama

def rotate_half(x):
    half = x.shape[-1] // 2
    return -x[..., half:], x[..., :half]

def _rotated(x, cos, sin, position_ids):
    import torch
    cos, sin = cos[0, 0][position_ids][:, None], sin[0, 0][position_ids][:, None]
    return x * cos + torch.cat(rotate_half(x), -1) * sin

def apply_rotary_pos_emb_old(q, k, cos, sin, position_ids):
    return _rotated(q, cos, sin, position_ids), _rotated(k, cos, sin, position_ids)

def apply_rotary_pos_emb_scale(q, k, cos, sin, position_ids):
    scale = (position_ids + 1).log() / math.log(4096) * FACTOR
    q, k = apply_rotary_pos_emb_old(q, k, cos, sin, position_ids)
    return q * scale.clamp_min(1)[:, None, :, None].to(q.dtype), k

modeling_llama.apply_rotary_pos_emb = None
"""


def eabf(folder: Path, factor: float) -> Path:
    """A checkout of EABF whose scale is wrong by a factor."""
    (folder / "patch").mkdir(parents=True)
    (folder / "patch" / "EABF.py").write_text(f"FACTOR = {factor}\n{EABF}")
    return folder


def table(tmp_path, *arguments) -> pd.DataFrame:
    script.main([*map(str, arguments), "-o", str(tmp_path / "out")])
    return pd.read_csv(tmp_path / "out" / "table.csv", keep_default_na=False).set_index(["source", "quantity"])


@pytest.fixture
def one_method(monkeypatch):
    monkeypatch.setattr(script, "METHODS", (script.eabf,))


@pytest.mark.usefixtures("one_method")
def test_a_difference_of_the_official_code_is_reported(tmp_path):
    """The same code with another factor: all that it scales differs by it, and nothing else does."""
    from transformers.models.llama import modeling_llama

    rotation = modeling_llama.apply_rotary_pos_emb
    source, largest = "GAIR-NLP/Entropy-ABF unknown patch/EABF.py", "largest_absolute"
    right = table(tmp_path / "right", "--entropy-abf", eabf(tmp_path / "a", 1.0)).loc[source]
    wrong = table(tmp_path / "wrong", "--entropy-abf", eabf(tmp_path / "b", 1.01)).loc[source]
    assert modeling_llama.apply_rotary_pos_emb is rotation  # statements that patch are not executed, ours are undone
    for quantity in ("scaled queries, float32", "logits, all layers scaled", "logits, first 2 layers not scaled"):
        assert float(right.loc[quantity, largest]) < 1e-6
        assert float(wrong.loc[quantity, largest]) > 1e-3
    assert float(wrong.loc["scaled queries, float32", "largest_relative"]) == pytest.approx(0.01 / 1.01, rel=0.01)
    assert float(right.loc["logits, defaults", largest]) > 0.1  # two layers that only official scales


@pytest.mark.usefixtures("one_method")
def test_a_missing_checkout_is_not_compared(tmp_path):
    rows = table(tmp_path)
    assert len(rows) == len(script.eabf.comparisons()) > 0
    assert set(rows["largest_absolute"]) == {f"{NOT_COMPARED}: no checkout was given"}
    assert set(rows["largest_relative"]) == {NOT_COMPARED}
    assert set(rows["n"]) == {0}
    markdown = (tmp_path / "out" / "table.md").read_text("utf-8").splitlines()
    assert sum(NOT_COMPARED in line for line in markdown) == len(rows)


def test_a_missing_library_is_not_compared(tmp_path):
    (tmp_path / "file.py").write_text("from missing_library import solve\ndef f():\n    return solve(1)\n")
    comparison = Comparison("m", "q", "", "clex", "file.py", lambda checkout: checkout.definitions("file.py")["f"]())
    row = measured(comparison, {"clex": Checkout("clex", tmp_path)})
    assert row.largest_relative == NOT_COMPARED
    assert "missing_library" in row.largest_absolute
    assert row.n == 0


def test_a_folder_without_the_file_is_refused(tmp_path):
    with user_error("not_found", "CLEX/clex_layer.py", "DAMO-NLP-SG/CLEX", field="clex"):
        Checkout("clex", tmp_path).definitions("CLEX/clex_layer.py")


def test_definitions_of_a_file(tmp_path):
    """Functions, classes and constants as the file means them; replaced names are kept, other statements not run."""
    (tmp_path / "file.py").write_text(
        "from dataclasses import dataclass\nimport torch\nRANK = 8\nraise SystemExit\n"
        "@dataclass\nclass Settings:\n    rank: int = RANK\n"
        "def scale():\n    return 2\ndef twice():\n    return 2 * scale()\n"
    )
    official = Checkout("longlora", tmp_path).definitions("file.py", scale=lambda: 5)
    assert official["twice"]() == 10
    assert official["Settings"].__annotations__ == {"rank": int}  # the future statement of our file is not inherited
    assert official["torch"] is torch
    with user_error("unsupported", tmp_path / "file.py", "thrice", field="longlora"):
        official["thrice"]


def test_differences_by_hand():
    official = torch.tensor([1.0, -4.0]), torch.tensor([10.0])
    ours = torch.tensor([1.5, -4.25]), torch.tensor([10.25])
    assert of_tensors(zip(official, ours, strict=True)) == Difference(3, 0.5, 0.125)
    assert of_names({"a", "b"}, {"b", "c", "d"}) == Difference(4, 3, 1.5, "a, c, d")
    assert math.isnan(of_tensors([(official[0], ours[0]), (torch.tensor([math.nan]), ours[1])]).absolute)
    for pair in ((official[0], ours[1]), (torch.empty(0), torch.empty(0))):
        with pytest.raises(ValueError, match="cannot compare"):
            of_tensors([pair])
    with pytest.raises(ValueError, match="nothing"):
        of_tensors([])


def test_the_regularizer_needs_no_checkout(monkeypatch):
    """The formulas are in the script. Where ours is 1 % larger, the table says so."""
    rows = {row.quantity: row for row in script.regularizer.comparisons()}
    assert measured(rows["loss, metric"], {}).largest_relative == NOT_COMPARED
    row = measured(rows["loss"], {})
    assert row.n == len(script.regularizer.COMBINATIONS) == 216
    assert 0 < row.largest_absolute < 1e-13
    formula = script.regularizer.by_formula
    monkeypatch.setattr(script.regularizer, "by_formula", lambda *arguments: formula(*arguments) / 1.01)
    assert measured(rows["loss"], {}).largest_relative == pytest.approx(0.01)


def test_the_committed_table_has_every_row():
    """Each was measured, but for the code that cannot be obtained."""
    rows = pd.read_csv(ROOT / "results" / "official_methods" / "table.csv", keep_default_na=False)
    expected = [(row.method, row.quantity, row.compared, row.deliberate) for row in script.all_comparisons()]
    assert [*rows[["method", "quantity", "compared", "deliberate"]].itertuples(index=False, name=None)] == expected
    not_compared = rows[rows["largest_relative"] == NOT_COMPARED]
    assert [*not_compared["source"]] == ["PKU-ML/LongShortAlignment"]
    assert "unknown" not in " ".join(rows["source"])
