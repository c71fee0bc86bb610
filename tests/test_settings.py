"""Settings: their defaults, every form in which they can be given, and all that derives from their definition."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass as plain_dataclass
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from longshort.errors import UserError
from longshort.options import options_of, settings_of
from longshort.settings import Checkpoint, EvalSettings, Resources, settings_from
from longshort.settings.definition import CONFIG, Mark, Role, build, marked, names_of
from longshort.settings.types import Count
from longshort.sweep.manifest.load import load_manifest
from longshort.sweep.store.plan import why_invalid

STUDY = Path(__file__).parents[1] / "results" / "study" / "sweep"


def test_defaults_are_the_documented_ones() -> None:
    settings = settings_from({"pretrained": "x", "dtype": "float32"})
    assert settings == EvalSettings(
        corpus="pg19", lengths=(2048, 4096, 8192, 16384, 32768), train_length=4096, num_docs=32, seed=0
    )
    assert settings.num_targets == 1024
    assert settings_from(Checkpoint("owner/name").metadata()) == settings


@given(st.lists(st.integers(8, 10**6), min_size=1, max_size=6))
def test_lengths_however_given(lengths: list[int]) -> None:
    expected = tuple(sorted(set(lengths)))
    texts = [str(length) for length in lengths]
    for given_as in (lengths, tuple(lengths), ",".join(texts), f" {', '.join(texts)},", texts, map(float, lengths)):
        read = settings_from({"lengths": given_as})
        assert read.lengths == expected
        assert read.num_targets == expected[0] // 2


@given(st.integers(1, 2**53))
def test_whole_numbers_however_given(number: int) -> None:
    for given_as in (number, str(number), float(number), f"{number}.0", f"{number:e}" if number < 10**7 else number):
        assert settings_from({"num_docs": given_as}).num_docs == number


NOT_WHOLE = st.one_of(
    st.booleans(),
    st.floats().filter(lambda number: not (math.isfinite(number) and number == int(number) and number >= 1)),
    st.integers(max_value=0),
    st.sampled_from(["", "x", "1.5", "nan", "inf", "1e999", "0x10", 10**400, [], [1], {}, b"1", object()]),
)


@given(st.sampled_from(["train_length", "num_docs", "tail_tokens", "params", "train_tokens"]), NOT_WHOLE)
def test_what_is_not_a_whole_number_is_refused_with_its_field(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}: ") as caught:
        settings_from({name: value})
    assert (caught.value.kind, caught.value.field) == ("setting", name)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [
        ("lengths", "12,many", ("'many'", "at least 8")),
        ("lengths", [True], ("True",)),
        ("lengths", "7", ("'7'", "at least 8")),
        ("lengths", ",", ()),
        ("lengths", [], ()),
        ("lengths", {"a": 1}, ()),
        ("seed", -1, ("-1", "at least 0")),
        ("tail_tokens", 99999, ("99999", "2048")),
    ],
)
def test_other_wrong_values(name: str, value: Any, facts: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=name) as caught:
        settings_from({name: value})
    assert (caught.value.kind, caught.value.field) == ("setting", name)
    assert all(fact in caught.value.message for fact in facts)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"dtype": "float7"}, "dtype"),
        ({"batch_size": "auto:x"}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"limit": math.nan}, "limit"),
        ({"limit": math.inf}, "limit"),
        ({"limit": True}, "limit"),
        ({"tasks": ","}, "tasks"),
        ({"trust_remote_code": 1}, "trust_remote_code"),
        ({"gated": "true"}, "gated"),
        ({"task_args": {"lengths": [64]}}, "task_args"),  # a setting of longshort's tasks
        ({"task_args": {"pretrained": "x"}}, "task_args"),
        ({"task_args": {"scored": {}}}, "task_args"),  # what results record
        ({"task_args": "max_seq_lengths=64"}, "task_args"),
        ({"task_args": "[64]"}, "task_args"),
        ({"task_args": [64]}, "task_args"),
        ({"task_args": '{"a": 1, "a": 2}'}, "task_args"),
        ({"task_args": '{"a": NaN}'}, "task_args"),
        ({"task_args": {"a": object()}}, "task_args"),
        ({"task_args": "[" * 100_000}, "task_args"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_wrong_settings_of_a_checkpoint(values: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=field) as caught:
        build(Checkpoint, {"pretrained": "owner/name"} | values)
    assert (caught.value.kind, caught.value.field) == ("setting", field)


def test_other_forms_of_a_checkpoints_settings() -> None:
    values = {"tasks": "a, b", "batch_size": "4", "limit": "2.0", "resources": {"memory": "1.5gb", "gpus": "0"}}
    checkpoint = build(Checkpoint, {"pretrained": "owner/name"} | values)
    assert (checkpoint.tasks, checkpoint.batch_size, checkpoint.limit) == (("a", "b"), 4, 2)
    assert checkpoint.resources == Resources(gpus=0, memory=1_500_000_000)
    assert build(Checkpoint, {"pretrained": "a", "batch_size": "auto:4"}).batch_size == "auto:4"


def test_metadata_of_other_tasks_is_no_setting_of_longshort_s() -> None:
    for given_as in ({"max_seq_lengths": (64, 128)}, '{"max_seq_lengths": [64, 128]}'):
        checkpoint = build(Checkpoint, {"pretrained": "a/b", "task_args": given_as})
        assert checkpoint.task_args == {"max_seq_lengths": [64, 128]}
        assert checkpoint.metadata() == Checkpoint("a/b").metadata()
        assert checkpoint.values(Role.NUMBERS)["task_args"] == {"max_seq_lengths": [64, 128]}
    with pytest.raises(UserError, match=r"'lengths'.*setting"):
        build(Checkpoint, {"pretrained": "a/b", "task_args": {"max_seq_lengths": [64], "lengths": [64]}})


def test_metadata_holds_the_resolved_settings_and_nothing_unknown() -> None:
    given = {"lengths": 64, "family": "a", "params": 7e9, "train_tokens": None, "pretrained": "x"}
    assert settings_from(given).to_metadata() == {
        "corpus": "pg19",
        "lengths": [64],
        "train_length": 4096,
        "num_docs": 32,
        "tail_tokens": 32,
        "seed": 0,
        "family": "a",
        "params": 7_000_000_000,
    }


def test_a_key_with_a_typo_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    settings_from({"num_doc": 3, "pretrained": "x"})
    (message,) = caplog.messages
    assert "'num_doc'" in message
    assert "'num_docs'" in message


# ---- roles


def test_every_setting_has_help_and_one_role() -> None:
    for settings_class in (EvalSettings, Checkpoint, Resources):
        assert all(setting.help.endswith(".") for setting in settings_of(settings_class))
    roles = {role: names_of(Checkpoint, role) for role in Role}
    assert sorted(name for names in roles.values() for name in names) == sorted(
        field.name for field in fields(Checkpoint)
    )
    assert set(roles[Role.ABOUT]) == {"family", "params", "train_tokens", "train_length"}


@pytest.mark.skipif(not STUDY.is_dir(), reason="the recorded results are not in the source archive")
def test_recorded_fingerprints_have_the_same_settings() -> None:
    """Otherwise the results of older sweeps would be measured again."""
    files = list(STUDY.rglob("results_*.json"))
    assert files
    for file in files:
        inputs = json.loads(file.read_text("utf-8"))["longshort_sweep"]["inputs"]
        checkpoint = build(Checkpoint, {"pretrained": inputs["pretrained"]} | inputs["settings"])
        now = json.loads(json.dumps(checkpoint.values(Role.NUMBERS)))
        assert {name: now[name] for name in inputs["settings"]} == inputs["settings"]
        assert not any(value for name, value in now.items() if name not in inputs["settings"])  # later settings


# ---- a setting that is added


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MoreSettings(EvalSettings):
    """As if `EvalSettings` had another field."""

    max_bytes: Annotated[Count | None, "Maximum number of bytes to read per document."] = None


@dataclass(frozen=True, config=CONFIG)
class MoreCheckpoint(Checkpoint, MoreSettings):
    """`Checkpoint`, of these settings."""


def write_manifest(folder: Path, rest: str) -> str:
    file = folder / "manifest.yaml"
    file.write_text(f"checkpoints:\n- pretrained: a/b\n  {rest}\n")
    return str(file)


def test_an_added_setting_is_an_option_of_the_command_line() -> None:
    app, calls = typer.Typer(), []

    @app.command()
    @options_of(MoreSettings)
    def command(settings: dict[str, Any]) -> None:
        calls.append(settings_from(settings, MoreSettings))

    assert CliRunner().invoke(app, ["--max-bytes", "500"]).exit_code == 0
    assert calls == [MoreSettings(max_bytes=500)]
    output = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "--max-bytes" in output
    assert "Maximum number of bytes to read per document." in output


def test_an_added_setting_is_a_field_of_manifests(tmp_path: Path) -> None:
    (checkpoint,) = load_manifest(write_manifest(tmp_path, "max_bytes: 5e2"), MoreCheckpoint)
    assert checkpoint == MoreCheckpoint("a/b", max_bytes=500, line=2)
    with pytest.raises(UserError, match=r"line 3, .*'0'") as caught:
        load_manifest(write_manifest(tmp_path, "max_bytes: 0"), MoreCheckpoint)
    assert caught.value.field == "checkpoints[0].max_bytes"


def test_an_added_setting_reaches_the_tasks_and_the_results() -> None:
    metadata = MoreCheckpoint("a/b", max_bytes=500).metadata()
    assert metadata["max_bytes"] == 500
    assert settings_from(metadata, MoreSettings).to_metadata()["max_bytes"] == 500


def test_an_added_setting_decides_what_is_measured_again() -> None:
    before = {"settings": Checkpoint("a/b").values(Role.NUMBERS)}
    same, other = MoreCheckpoint("a/b"), MoreCheckpoint("a/b", max_bytes=500)
    assert why_invalid(before, {"settings": same.values(Role.NUMBERS)}) is None  # older results stay valid
    assert "max_bytes" in str(why_invalid(before, {"settings": other.values(Role.NUMBERS)}))
    assert replace(other, max_bytes=None) == same


def test_the_marks_of_a_setting_are_read_from_its_annotation() -> None:
    @plain_dataclass
    class Settings:
        folder: Annotated[str, "A folder.", Mark.PATH, Role.SOURCE] = ""
        count: Annotated[int, "A number."] = 1

    assert marked(Settings, Mark.PATH) == ["folder"]
    assert names_of(Settings, Role.NUMBERS) == ["count"]
