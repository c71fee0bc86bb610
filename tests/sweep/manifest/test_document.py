"""Mistakes in a YAML file and in its values, whatever the value is for."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from longshort.errors import UserError
from longshort.sweep.manifest.document import parse
from tests.sweep.manifests import assert_told, load, loads_or_says_why

AT = "{pretrained: a/b, "
MISTAKES = {
    f"{AT}seed: 1, seed: 2}}": "checkpoints[0].seed: it is given twice.",
    f"{AT}[a]: 2}}": "a name has to be text.",
    f"{AT}params: -1}}": "checkpoints[0].params: '-1' is not a whole number of at least 1.",
    f"{AT}params: 1.5}}": "checkpoints[0].params: '1.5' is not a whole number of at least 1.",
    f"{AT}params: true}}": "checkpoints[0].params: 'true' is not a whole number of at least 1.",
    f"{AT}params: null}}": "checkpoints[0].params: 'null' is not a whole number of at least 1.",
    f"{AT}params: .inf}}": "checkpoints[0].params: '.inf' is not a whole number of at least 1.",
    f"{AT}params: [1]}}": "checkpoints[0].params: a list is not a whole number of at least 1.",
    f"{AT}params: !!int x}}": "checkpoints[0].params: this is no plain value.",
    f"{AT}trust_remote_code: 1}}": "checkpoints[0].trust_remote_code: '1' is neither true nor false.",
    f"{AT}trust_remote_code: 'true'}}": "checkpoints[0].trust_remote_code: 'true' is neither true nor false.",
    f"{AT}dtype: int8}}": "checkpoints[0].dtype: 'int8' is none of auto, float32, bfloat16, float16.",
    f"{AT}limit: 0}}": "checkpoints[0].limit: '0' is not a number above 0.",
    f"{AT}timeout: soon}}": "checkpoints[0].timeout: 'soon' is not a number above 0.",
    f"{AT}family: null}}": "checkpoints[0].family: this has to be text.",
    f'{AT}family: "\\ud800"}}': "line 2",  # half a character; the C loader refuses it itself
    "pretrained: ''": "checkpoints[0].pretrained: this has to be text.",
    "pretrained: [a]": "checkpoints[0].pretrained: this has to be text.",
    "pretrained:": "checkpoints[0].pretrained: this has to be text.",
}


@pytest.mark.parametrize("entry", MISTAKES, ids=range(len(MISTAKES)))
def test_a_value_of_another_kind_is_told_with_its_line_and_field(tmp_path, entry):
    assert_told(tmp_path, entry, MISTAKES[entry])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "manifest.yaml is empty."),
        ("# nothing", "manifest.yaml is empty."),
        ("[a]", "line 1: this manifest has to be a mapping"),
        ("a: [1\nb: 2", "line 2: not valid YAML"),
        ("a: b\n\tc: d", "line 2: not valid YAML"),
        ("a: *b", "line 1: not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("a: 1\n---\nb: 2", "line 2: not valid YAML"),
        ("checkpoints: []\ncheckpoints: []", "line 2, checkpoints: it is given twice."),
    ],
)
def test_a_file_that_is_no_mapping_in_yaml_is_told_with_its_line(tmp_path, text, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        load(tmp_path, text)


def test_values_too_deep_are_told_with_their_line():
    deep = 51
    with pytest.raises(UserError, match=r"^file, line 2: more than 50 lists or mappings in each other"):
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
def test_whatever_text_it_loads_or_says_why(tmp_path, text):
    loads_or_says_why(tmp_path, text)
    loads_or_says_why(tmp_path, f"checkpoints:\n- pretrained: a/b\n  {text}")
