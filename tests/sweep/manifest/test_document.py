"""Wrong YAML, and values of a wrong type."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.sweep.manifest.document import parse
from tests.sweep.manifests import assert_error, assert_loads_or_reports, assert_manifest_error, entries, load


@pytest.mark.parametrize(
    ("field", "value", "facts"),
    [
        ("params", "-1", ("'-1'", "at least 1")),
        ("params", "1.5", ("'1.5'", "whole number")),
        ("params", "true", ("'true'", "whole number")),
        ("params", "null", ()),
        ("params", ".inf", ("'.inf'",)),
        ("params", ".nan", ("'.nan'",)),
        ("params", "[1]", ("list", "whole number")),
        ("params", "!!int x", ()),
        ("seed", "-1", ("'-1'", "at least 0")),
        ("trust_remote_code", "1", ("'1'", "true", "false")),
        ("trust_remote_code", "'true'", ("'true'",)),
        ("dtype", "int8", ("'int8'", "auto", "float32", "bfloat16", "float16")),
        ("limit", "0", ("'0'", "above 0")),
        ("limit", "true", ("'true'", "above 0")),
        ("timeout", "soon", ("'soon'", "above 0")),
        ("timeout", ".nan", ("'.nan'",)),
        ("family", "null", ("text",)),
        ("family", "''", ("text",)),
    ],
)
def test_a_wrong_value_is_reported_with_its_line_and_field(
    tmp_path: Path, field: str, value: str, facts: tuple[str, ...]
) -> None:
    assert_error(tmp_path, f"{{pretrained: a/b, {field}: {value}}}", f"checkpoints[0].{field}", *facts)


@pytest.mark.parametrize("value", ["''", "[a]", "", '"a\\0b"'])
def test_a_name_has_to_be_text(tmp_path: Path, value: str) -> None:
    assert_error(tmp_path, f"pretrained: {value}", "checkpoints[0].pretrained")


def test_half_a_surrogate_pair_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2"):  # the C loader refuses it, the other one lets it through
        entries(tmp_path, '{pretrained: a/b, family: "\\ud800"}')


def test_a_field_given_twice_or_whose_name_is_not_text(tmp_path: Path) -> None:
    assert_error(tmp_path, "{pretrained: a/b, seed: 1, seed: 2}", "checkpoints[0].seed")
    assert_error(tmp_path, "{pretrained: a/b, [a]: 2}", "checkpoints[0]")
    assert_manifest_error(tmp_path, "checkpoints: []\ncheckpoints: []", "checkpoints", line=2)


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: [1\nb: 2", 2), ("a: b\n\tc: d", 2), ("a: *b", 1), ("b: 1\n---\nb: 2", 2)],
)
def test_text_that_is_not_yaml_is_reported_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    assert_manifest_error(tmp_path, text, None, line=line, kind="data")


@pytest.mark.parametrize("text", ["", "# nothing", "a: \x07"])
def test_text_without_any_value_names_the_file(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"manifest\.yaml") as caught:
        load(tmp_path, text)
    assert caught.value.kind == "data"


def test_a_manifest_that_is_not_a_mapping(tmp_path: Path) -> None:
    assert_manifest_error(tmp_path, "[a]", None, line=1)


def test_values_nested_too_deeply_are_reported_with_their_line() -> None:
    deep = 51
    with pytest.raises(UserError, match=r"^file, line 2: .*50"):
        parse("a: 1\nb: " + "[" * deep + "]" * deep, "file")
    parse("a: 1\nb: " + "[" * (deep - 2) + "]" * (deep - 2), "file")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8"), max_size=60) | st.text("{}[]:,-*&!|>'\"#%@` \n\tab01", max_size=40))
@example("[" * 100_000)
@example("{a: " * 5_000)
@example("a: &x [*x]")
@example("checkpoints: &x [*x]")
@example("checkpoints: [{pretrained: a, model_args: &x {y: *x}}]")
@example("checkpoints: [{pretrained: a, params: 0x" + "f" * 5000 + "}]")
@example("checkpoints: [{pretrained: a, params: " + "9" * 5000 + "}]")
@example("checkpoints: [{pretrained: " + "a" * 5000 + "}]")
@example("checkpoints: [{pretrained: ./" + "a" * 5000 + "}]")
@example("checkpoints: [{pretrained: a, corpus: " + "a" * 5000 + "}]")
@example("checkpoints: [{folders: " + "a" * 5000 + "}]")
@example('checkpoints: [{pretrained: "./\\ud800"}]')
@example('checkpoints: [{pretrained: "a\\0b"}]')
@example("checkpoints: [{pretrained: a, gated: !!bool x}]")
@example("checkpoints: [{pretrained: a, params: !!int ''}]")
@example("checkpoints: [{pretrained: a, params: !!timestamp x}]")
@example("checkpoints: [{pretrained: a, params: !!python/object:os.system x}]")
@example("checkpoints: [{pretrained: ~nobody/x}]")
@example("checkpoints: [{<<: {pretrained: a}}]")
def test_any_text_is_read_or_reported(tmp_path: Path, text: str) -> None:
    assert_loads_or_reports(tmp_path, text)
    assert_loads_or_reports(tmp_path, f"checkpoints:\n- pretrained: a/b\n  {text}")
