"""Options made from a settings class: each kind of field, of a dataclass and of a pydantic dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typer.testing import CliRunner, Result

from longshort.errors import UserError
from longshort.options import options_of, run_app, settings_of, usage_errors


@dataclass(frozen=True)
class Recipe:
    output: Annotated[str, "Folder for the result."]
    model_config: Annotated[str | None, "A configuration file."] = None
    alpha: Annotated[float, "Weight of the loss."] = 0.25
    steps: Annotated[int, "Number of steps."] = 200
    divergence: Annotated[Literal["sce", "js"], "Which divergence to compute."] = "sce"
    verbose: Annotated[bool, "Print more."] = False
    save_at: Annotated[tuple[int, ...], "Steps after which to save."] = ()
    names: Annotated[tuple[str, ...], "Names of the tasks."] = ("mean", "length")
    options: Annotated[dict[str, Any] | None, "Further options."] = None


@pydantic_dataclass(frozen=True)
class Measurement:
    corpus: Annotated[str, "Which text to read."] = "pg19"
    lengths: Annotated[tuple[Annotated[int, Field(ge=8)], ...], "Context lengths."] = (16, 32)
    folder: Annotated[Path | None, "Where to look."] = None
    batch_size: Annotated[int | Literal["auto"], "Documents at once."] = 1
    extra: Annotated[dict[str, Any], "Arguments."] = field(default_factory=dict)


def app_of(settings_class: type, **how: Any) -> tuple[typer.Typer, list[dict[str, Any]]]:
    app, calls = typer.Typer(), []

    @app.command()
    @options_of(settings_class, **how)
    def command(
        source: Annotated[str, typer.Argument(help="What to read.")],
        settings: dict[str, Any],
        device: Annotated[str, typer.Option(help="Which device.")] = "cpu",
    ) -> None:
        """Do it."""
        calls.append({"source": source, "device": device, "settings": settings})

    return app, calls


def run(app: typer.Typer, *arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_each_kind_of_field_arrives_with_its_type() -> None:
    app, calls = app_of(Recipe, flags={"model_config": ("--config",), "output": ("--output", "-o")})
    result = run(
        app,
        *["text", "-o", "out", "--config", "c.json", "--alpha", "0.5", "--steps", "7", "--divergence", "js"],
        *["--verbose", "--save-at", "5, 10", "--names", "mean", "--options", '{"beta": 32}', "--device", "cuda"],
    )
    assert result.exit_code == 0, result.output
    settings = {
        "output": "out",
        "model_config": "c.json",
        "alpha": 0.5,
        "steps": 7,
        "divergence": "js",
        "verbose": True,
        "save_at": (5, 10),
        "names": ("mean",),
        "options": {"beta": 32},
    }
    assert calls == [{"source": "text", "device": "cuda", "settings": settings}]
    assert Recipe(**settings).steps == 7


def test_only_given_settings_arrive_so_that_defaults_stay_in_the_class() -> None:
    app, calls = app_of(Recipe)
    assert run(app, "text", "--output", "out").exit_code == 0
    assert calls[0]["settings"] == {"output": "out"}


def test_a_pydantic_dataclass_gets_the_text_of_what_typer_cannot_read() -> None:
    app, calls = app_of(Measurement)
    result = run(app, "text", "--lengths", "64,128", "--batch-size", "auto", "--folder", "there", "--extra", "{}")
    assert result.exit_code == 0, result.output
    given = {"lengths": "64,128", "batch_size": "auto", "folder": Path("there"), "extra": "{}"}
    assert calls[0]["settings"] == given


def test_help_shows_description_and_default_of_each_field() -> None:
    text = " ".join(run(app_of(Recipe)[0], "--help").output.replace("│", " ").split())
    for setting in settings_of(Recipe):
        assert f"--{setting.name.replace('_', '-')}" in text
        assert setting.help in text
    for default in ("0.25", "200", "sce", "mean,length"):
        assert f"[default: {default}]" in text
    for absent in ("None", "False", "()", "--no-verbose", "{}"):
        assert absent not in text
    assert text.index("--output") < text.index("--options") < text.index("--device")
    assert "[default: 16,32]" in run(app_of(Measurement)[0], "--help").output


def test_a_required_field_is_a_required_option() -> None:
    result = run(app_of(Recipe)[0], "text")
    assert result.exit_code == 2
    assert "--output" in result.output


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("--save-at", "5,x", "save_at"),
        ("--options", "{", "options"),
        ("--options", "[]", "options"),
        ("--options", "[" * 100_000, "options"),
    ],
)
def test_a_value_that_cannot_be_parsed_is_wrong_usage(option: str, value: str, name: str) -> None:
    app, calls = app_of(Recipe)
    error = run(app, "text", "--output", "out", option, value).exception
    assert isinstance(error, UserError)
    assert (error.kind, error.field) == ("usage", name)
    assert option in error.message
    assert value[:60] in error.message
    assert len(error.message) < 300
    assert not calls


def test_options_of_two_classes_and_of_some_fields_only() -> None:
    app, calls = typer.Typer(), []

    @app.command()
    @options_of(Recipe, into="recipe", only=("alpha", "steps"))
    @options_of(Measurement, into="measurement", only={"corpus"})
    def command(recipe: dict[str, Any], measurement: dict[str, Any]) -> None:
        calls.append((recipe, measurement))

    assert run(app, "--steps", "3", "--corpus", "builtin").exit_code == 0
    assert calls == [({"steps": 3}, {"corpus": "builtin"})]
    assert "--lengths" not in run(app, "--help").output


def test_a_wrong_setting_on_the_command_line_is_wrong_usage() -> None:
    with pytest.raises(UserError) as caught, usage_errors():
        raise UserError("steps is 0.", "setting", "steps")
    assert (caught.value.kind, caught.value.field, caught.value.exit_code) == ("usage", "steps", 2)


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("3", 0)])
def test_an_error_is_one_line_of_the_first_rank_and_an_exit_code(
    rank: str, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        raise UserError("no such folder: x.", "not_found")

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("sys.argv", ["longshort"])
    with pytest.raises(SystemExit) as end:
        run_app(app)
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines() == ["longshort: no such folder: x."] * lines
