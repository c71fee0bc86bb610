"""UserError: what it carries, and what of it reaches the user."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import get_args

import pytest

from longshort.errors import Kind, UserError, first_line, listed


def test_it_keeps_its_category_and_field_in_another_process() -> None:
    error = pickle.loads(pickle.dumps(UserError("one line", "setting", "lengths")))
    assert (str(error), error.message, error.kind, error.field) == ("one line", "one line", "setting", "lengths")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_wrong_usage_alone_has_exit_code_2(kind: Kind) -> None:
    assert UserError("x", kind).exit_code == (2 if kind == "usage" else 1)


@pytest.mark.parametrize("error", ["UserError('what', 'data')", "ValueError('what')"])
def test_a_script_shows_one_line_instead_of_a_traceback(error: str) -> None:
    code = "from longshort.errors import UserError, one_line_for_user_errors\none_line_for_user_errors()\n"
    done = subprocess.run([sys.executable, "-c", f"{code}raise {error}"], capture_output=True, text=True)
    assert done.returncode == 1
    if "UserError" in error:
        assert done.stderr == "longshort: what\n"
    else:
        assert "Traceback" in done.stderr


def test_parts_of_messages() -> None:
    assert first_line(ValueError("\nwhat it was\nand where")) == "what it was"
    assert first_line(ValueError()) == "ValueError"
    assert (listed("abc"), listed("abcde"), listed([1, 2], 1)) == ("a, b, c", "a, b, c and 2 more", "1 and 1 more")
